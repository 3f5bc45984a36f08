package owner

import (
	"context"

	"github.com/edumatrix/interlinked/shared/eventlog/membership"
)

// readRooms reads the facts about rooms that commands declare to need (count_members_up_to), in one round trip. It must
// not be called while the log's lock is held, because it takes a connection of the pool.
func (d *decider) readRooms(ctx context.Context, batch []*pendingCommand) error {
	var need []*pendingCommand
	var wanted []membership.Fact
	for _, pc := range batch {
		if counted := pc.declared.CountMembersUpTo; counted > 0 {
			need = append(need, pc)
			wanted = append(wanted, membership.Fact{Room: pc.declared.MemberOf(pc.message, pc.origin()),
				User: pc.command.Actor, MaxCounted: counted})
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	rooms, err := membership.Facts(ctx, d.log, wanted)
	for i := range rooms {
		need[i].room = rooms[i]
	}
	return err
}
