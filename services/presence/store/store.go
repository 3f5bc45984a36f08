// Package store stores presence in Redis: the connections of each gateway and, derived from them, which users are
// online and the sessions of each user. Only scripts change them, because Redis executes a script atomically. If a user
// goes online or offline, the script numbers this change with the time of Redis, and marks it as unpublished.
//
// All keys of an installation have the same hash tag, so that a script's keys are on one node of a Redis Cluster.
package store

import (
	"context"
	_ "embed" // the scripts
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
)

//go:embed state.lua
var stateSource string

//go:embed report.lua
var reportSource string

//go:embed expire.lua
var expireSource string

//go:embed end.lua
var endSource string

//go:embed published.lua
var publishedSource string

// maxPerCall is the maximum number of connections that one call of expire.lua ends, because a script blocks Redis.
// Ending 500 connections takes some milliseconds; ending all connections of a large gateway would take a quarter of a
// second. A call of report.lua drops at most 4 * maxPerCall connections that a full report does not contain.
const maxPerCall = 500

// Store reads and changes presence.
type Store struct {
	redis                           *redis.Client
	prefix                          string
	lease                           time.Duration
	report, expire, end, publishing *redis.Script
}

// New returns a Store whose keys have the prefix of an installation. A gateway that has not reported for the duration
// in the parameter lease counts as ended.
func New(r *redis.Client, prefix string, lease time.Duration) *Store {
	kept := fmt.Sprintf("local keptFor, maxPerCall = %d, %d\n", SessionRetention.Milliseconds(), maxPerCall)
	return &Store{redis: r, prefix: "{" + prefix + "presence}:", lease: lease,
		report: redis.NewScript(kept + stateSource + reportSource),
		expire: redis.NewScript(kept + stateSource + expireSource),
		end:    redis.NewScript(kept + endSource), publishing: redis.NewScript(publishedSource)}
}

func (s *Store) keys(gateway string) []string {
	return []string{s.prefix + "leases", s.prefix + "gateway:" + gateway, s.prefix + "number:" + gateway,
		s.prefix + "digests", s.prefix + "online", s.prefix + "state", s.prefix + "dirty",
		s.prefix + "ended:" + gateway, s.prefix + "telling:" + gateway, s.prefix + "sessions:",
		s.prefix + "rooms:"}
}

// Answer is the result of a report.
type Answer string

// The results of a report.
const (
	OK        Answer = "ok"
	ReportAll Answer = "again" // no lease, or the count or digest differs; the gateway must report all its connections
	Old       Answer = "old"   // a newer report of the gateway was applied already
)

// Report applies a report of a gateway, and returns the connections that the gateway must close.
func (s *Store) Report(ctx context.Context, r *meshv1.ReportRequest) (answer Answer, ended []string, err error) {
	args := make([]any, 0, 9+9*len(r.GetChanges()))
	args = append(args, r.GetGateway(), r.GetNumber(), s.lease.Milliseconds(), r.GetAll(), r.GetEnds(), r.GetCount(),
		r.GetDigest(), r.GetPart(), r.GetMore())
	for _, c := range r.GetChanges() {
		args = append(args, c.GetConnection(), c.GetUser(), c.GetGone(), Hash(c.GetConnection(), c.GetUser()),
			c.GetSession(), c.GetConnectedAt().AsTime().UnixMicro(), c.GetResumeToken(), c.GetDevice(), roomsOf(c))
	}
	result, err := s.report.Run(ctx, s.redis, s.keys(r.GetGateway()), args...).StringSlice()
	if err != nil {
		return "", nil, fmt.Errorf("report of gateway %s: %w", r.GetGateway(), err)
	}
	if r.GetEnds() && Answer(result[0]) == OK {
		if _, err := s.endGateway(ctx, r.GetGateway()); err != nil {
			return "", nil, err
		}
	}
	return Answer(result[0]), result[1:], nil
}

// roomsOf returns the rooms of a change in the form that state.lua reads.
func roomsOf(c *meshv1.ConnectionChange) string {
	if c.GetRooms() == nil {
		return ""
	}
	var b strings.Builder
	if c.GetRooms().GetRestored() {
		b.WriteByte('?')
	} else {
		b.WriteByte('=')
	}
	for _, room := range c.GetRooms().GetRooms() {
		b.WriteByte(' ')
		b.WriteString(room)
	}
	return b.String()
}

// Hash returns the contribution of one connection to the digest of a report: FNV-1a (32 bit) of "connection user".
func Hash(connection, user string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(connection + " " + user))
	return h.Sum32()
}

// Expire removes the connections of gateways whose lease has expired, of at most 100 gateways in one call. It returns
// the number of gateways that it has ended.
func (s *Store) Expire(ctx context.Context) (ended int, err error) {
	now, err := s.redis.Time(ctx).Result()
	if err != nil {
		return 0, fmt.Errorf("read the time of Redis: %w", err)
	}
	late, err := s.redis.ZRangeArgs(ctx, redis.ZRangeArgs{Key: s.prefix + "leases", ByScore: true,
		Start: "-inf", Stop: strconv.FormatInt(now.UnixMicro(), 10), Count: 100}).Result()
	if err != nil {
		return 0, fmt.Errorf("read the expired leases: %w", err)
	}
	for _, gateway := range late {
		gone, err := s.endGateway(ctx, gateway)
		if err != nil {
			return ended, err
		}
		if gone {
			ended++
		}
	}
	return ended, nil
}

// endGateway removes all connections of a gateway whose lease has expired, and reports whether it did so. It returns
// false if another instance has removed the last connections, or if the gateway has reported again in the meantime.
func (s *Store) endGateway(ctx context.Context, gateway string) (bool, error) {
	const over, left = 1, 2 // the results of expire.lua
	for {
		switch n, err := s.expire.Run(ctx, s.redis, s.keys(gateway), gateway).Int(); {
		case err != nil:
			return false, fmt.Errorf("end gateway %s: %w", gateway, err)
		case n != left:
			return n == over, nil
		}
	}
}

// State is the presence of a user after a change. The state with the highest number is the current one.
type State struct {
	User   string
	Number int64
	Online bool
}

// Dirty returns about 500 of the users' states that are not published yet, or none if all are published.
func (s *Store) Dirty(ctx context.Context) ([]State, error) {
	// A scan may miss a field that is added during the scan; the next call of Dirty returns that field. HScan may
	// return no fields before the scan is over, so continue until the cursor is 0.
	for cursor := uint64(0); ; {
		found, next, err := s.redis.HScan(ctx, s.prefix+"dirty", cursor, "", 500).Result()
		if err != nil {
			return nil, fmt.Errorf("read the changes that are not published: %w", err)
		}
		var users []string
		for i := 0; i+1 < len(found); i += 2 {
			users = append(users, found[i])
		}
		_, known, err := s.read(ctx, users)
		if err != nil {
			return nil, err
		}
		var states []State
		for _, user := range users {
			if state, ok := known[user]; ok { // missing only if Redis was emptied after the scan
				states = append(states, state)
			}
		}
		if cursor = next; len(states) > 0 || cursor == 0 {
			return states, nil
		}
	}
}

// Published records that changes are published.
func (s *Store) Published(ctx context.Context, states []State) error {
	args := make([]any, 0, 2*len(states))
	for _, state := range states {
		args = append(args, state.User, state.Number)
	}
	if err := s.publishing.Run(ctx, s.redis, []string{s.prefix + "dirty"}, args...).Err(); err != nil {
		return fmt.Errorf("record the published changes: %w", err)
	}
	return nil
}

// States returns the states of users. A user without a stored state is offline, with a number that is taken from the
// current time, as the numbers of changes are. So the number is higher than that of any state from before Redis was
// emptied, and lower than that of the next change.
func (s *Store) States(ctx context.Context, users []string) ([]State, error) {
	now, known, err := s.read(ctx, users)
	if err != nil {
		return nil, err
	}
	states := make([]State, len(users))
	for i, user := range users {
		state, ok := known[user]
		if !ok {
			state = State{User: user, Number: now - 1}
		}
		states[i] = state
	}
	return states, nil
}

// read returns the stored states of the users, and the time of Redis in µs, read just before the states.
func (s *Store) read(ctx context.Context, users []string) (now int64, known map[string]State, err error) {
	if len(users) == 0 {
		return 0, nil, nil
	}
	both := s.redis.Pipeline()
	moment, values := both.Time(ctx), both.HMGet(ctx, s.prefix+"state", users...)
	if _, err := both.Exec(ctx); err != nil {
		return 0, nil, fmt.Errorf("read the states of users: %w", err)
	}
	known = make(map[string]State, len(users))
	for i, value := range values.Val() {
		text, ok := value.(string)
		if !ok {
			continue
		}
		number, online, _ := strings.Cut(text, ":")
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return 0, nil, fmt.Errorf("state of %s: %w", users[i], err)
		}
		known[users[i]] = State{users[i], n, online == "1"}
	}
	return moment.Val().UnixMicro(), known, nil
}
