package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// SessionRetention is how long a session without a connection is stored after its last report. A session is deleted
// earlier if the user has too many sessions (see prune in state.lua).
const SessionRetention = 7 * 24 * time.Hour

// Session is one device of a user, over all the connections that resumed it.
type Session struct {
	ID        string
	Device    string
	Gateway   string    // the gateway to which the session is or was last connected
	Since     time.Time // when the session began
	Seen      time.Time // when a gateway last reported the session, or when the lease of its gateway expired
	Connected bool
	// ResumeToken is the last resume token that was sent to the client, or "" if none was sent.
	ResumeToken string
}

// Sessions returns the stored sessions of a user, the newest first. It leaves out sessions that the user has ended, and
// sessions without a connection that were not reported for SessionRetention.
func (s *Store) Sessions(ctx context.Context, user string) ([]Session, error) {
	kept, err := s.redis.HGetAll(ctx, s.prefix+"sessions:"+user).Result()
	if err != nil {
		return nil, fmt.Errorf("read the sessions of %s: %w", user, err)
	}
	var all []Session
	for id, text := range kept {
		session, ended, err := readSession(id, text)
		if err != nil {
			return nil, fmt.Errorf("session %s of %s: %w", id, user, err)
		}
		if !ended && (session.Connected || time.Since(session.Seen) < SessionRetention) {
			all = append(all, session)
		}
	}
	slices.SortFunc(all, func(a, b Session) int {
		return cmp.Or(b.Since.Compare(a.Since), strings.Compare(a.ID, b.ID))
	})
	return all, nil
}

// SessionKey identifies a session of a user.
type SessionKey struct{ User, ID string }

// SessionRooms returns, for each session, the rooms to which its newest connection was last subscribed. A session that
// Sessions would not return has no rooms.
func (s *Store) SessionRooms(ctx context.Context, keys []SessionKey) ([][]string, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	all := s.redis.Pipeline()
	kept, subscribed := make([]*redis.StringCmd, len(keys)), make([]*redis.StringCmd, len(keys))
	for i, k := range keys {
		kept[i] = all.HGet(ctx, s.prefix+"sessions:"+k.User, k.ID)
		subscribed[i] = all.HGet(ctx, s.prefix+"rooms:"+k.User, k.ID)
	}
	if _, err := all.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("read the rooms of %d sessions: %w", len(keys), err)
	}
	rooms := make([][]string, len(keys))
	for i, k := range keys {
		if kept[i].Val() == "" || subscribed[i].Val() == "" {
			continue
		}
		session, ended, err := readSession(k.ID, kept[i].Val())
		if err != nil {
			return nil, fmt.Errorf("session %s of %s: %w", k.ID, k.User, err)
		}
		if !ended && (session.Connected || time.Since(session.Seen) < SessionRetention) {
			rooms[i] = strings.Fields(subscribed[i].Val())[1:] // the first field names the connection
		}
	}
	return rooms, nil
}

// readSession decodes a session as state.lua stores it.
func readSession(id, text string) (session Session, ended bool, err error) {
	if strings.HasPrefix(text, "ended ") {
		return session, true, nil
	}
	parts := strings.SplitN(text, " ", 6)
	if len(parts) < 6 {
		return session, false, fmt.Errorf("%q is not a stored session", text)
	}
	since, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil {
		return session, false, err
	}
	seen, err := strconv.ParseInt(parts[2], 10, 64)
	if err != nil {
		return session, false, err
	}
	return Session{ID: id, Gateway: parts[0], Since: time.UnixMicro(since), Seen: time.UnixMicro(seen),
		Connected: parts[3] != "", ResumeToken: parts[4], Device: parts[5]}, false, nil
}

// EndSession ends a session of a user. Gateways close its connections, and connections that resume it later. EndSession
// returns the number of the change: the time of Redis, in µs, at which the session was first ended. It returns 0 if the
// user has no session with this id.
func (s *Store) EndSession(ctx context.Context, user, id string) (number int64, err error) {
	number, err = s.end.Run(ctx, s.redis, []string{s.prefix + "sessions:" + user, s.prefix + "rooms:" + user}, id, s.prefix+"ended:").Int64()
	if err != nil {
		return 0, fmt.Errorf("end session %s of %s: %w", id, user, err)
	}
	return number, nil
}
