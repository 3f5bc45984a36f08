//go:build integration

package query_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
)

const usualText = "A message of the usual length, as they are written all day long."

const (
	sqlConstraints = `SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
  format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE connamespace = 'chat'::regnamespace AND contype IN ('p', 'u', 'f')
  AND conrelid::regclass::text = ANY ($1)
ORDER BY contype`
	sqlIndexes = `SELECT format('DROP INDEX %s', i.indexrelid::regclass), pg_get_indexdef(i.indexrelid)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE c.relnamespace = 'chat'::regnamespace AND i.indrelid::regclass::text = ANY ($1)
  AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid)`
)

// fill loads the tables with COPY. It drops the indexes first and creates them again afterwards, which is faster. If
// the server's wal_level is minimal, a table that was truncated in the same transaction is loaded without WAL.
func (s *sized) fill(b *testing.B) {
	b.Helper()
	body, err := proto.Marshal(&chatv1.MessageSent{ConversationId: uuid.NewString(), MessageId: uuid.NewString()})
	must(b, err)
	personal, err := proto.Marshal(&chatv1.MessageSent{Body: usualText})
	must(b, err)
	personal = append([]byte{0}, personal...)
	now := time.Now()
	ago := func(position int, whole time.Duration) time.Time {
		return now.Add(-time.Duration(float64(s.events-position) / float64(s.events) * float64(whole)))
	}
	user := func(position int) string { return "user" + strconv.Itoa(position%s.users) }

	events := table{"events", `position, stream, version, id, type, topic, actor, cause, command_type, correlation, time,
class, rooms, subject, answers, traceparent, body, personal`, func(w *copier) {
		for p := 1; p <= s.events; p++ {
			id, version := s.place(p)
			kind, subject, topic := "chat.message_sent", "m"+strconv.Itoa(version), "chat-events"
			if version == 1 {
				kind, subject = "chat.conversation_started", ""
			}
			if p%5_000 == 0 {
				topic = "file-events"
			}
			w.row(18)
			w.int64(p)
			w.text("conversation:", id)
			w.int64(version)
			w.uuid(p)
			w.text(kind)
			w.text(topic)
			w.text(user(p))
			w.text("command", strconv.Itoa(p))
			w.text("chat.send_message")
			w.text("")
			w.time(ago(p, 29*24*time.Hour))
			w.int16(1)
			w.texts("conversation:" + id)
			w.text(subject)
			w.bool(true)
			w.text("")
			w.bytes(body)
			w.bytes(personal)
		}
	}}
	rooms := table{"event_rooms", "room, position", func(w *copier) {
		for p := 1; p <= s.events; p++ {
			id, _ := s.place(p)
			w.row(2)
			w.text("conversation:", id)
			w.int64(p)
		}
	}}
	messages := table{"messages", "conversation_id, version, message_id, author, body, sent_at", func(w *copier) {
		for p := 1; p <= s.events; p++ {
			if id, version := s.place(p); version > 1 {
				w.row(6)
				w.text(id)
				w.int64(version)
				w.text("m", strconv.Itoa(version))
				w.text(user(p))
				w.text(usualText)
				w.time(now)
			}
		}
	}}
	outcomes := table{"outcomes", "actor, command_id, type, stream, kind, version, position, code, text, at", func(w *copier) {
		for p := 5; p <= s.events; p += 5 {
			id, version := s.place(p)
			w.row(10)
			w.text(user(p))
			w.text("command", strconv.Itoa(p))
			w.text("chat.send_message")
			w.text("conversation:", id)
			w.text("committed")
			w.int64(version)
			w.int64(p)
			w.text("")
			w.text("")
			w.time(ago(p, 29*24*time.Hour))
		}
	}}
	memberships := table{"memberships", "room, member, opened_version, opened_position, closed_version, closed_position",
		func(w *copier) {
			for c := range s.conversations {
				for _, member := range []string{"user" + strconv.Itoa(c%s.users), s.second(c)} {
					w.row(6)
					w.text("conversation:c", strconv.Itoa(c))
					w.text(member)
					w.int64(1)
					w.int64(c + c/9 + 1)
					w.null()
					w.null()
				}
			}
			for m := range s.members + 1 {
				w.row(6)
				w.text("conversation:big")
				if m == s.members {
					w.text("gone")
				} else {
					w.text("user", strconv.Itoa(m))
				}
				w.int64(1)
				w.int64(10)
				if m == s.members {
					w.int64(100)
					w.int64(1000)
				} else {
					w.null()
					w.null()
				}
			}
		}}
	newest := func(c int) (position int) { // the position of the newest event of conversation c
		k := (s.events - s.events/10 - 1 - c) / s.conversations * s.conversations
		return k + c + (k+c)/9 + 1
	}
	conversations := table{"conversations", `conversation_id, kind, title, history_from_joining, version, position,
newest_at, member_count, large`, func(w *copier) {
		for c := range s.conversations + 1 {
			id, position, members := "c"+strconv.Itoa(c), 0, 2
			if c == s.conversations {
				id, position, members = "big", s.events/10*10, s.members
			} else {
				position = newest(c)
			}
			_, version := s.place(position)
			w.row(9)
			w.text(id)
			w.int32(2)
			w.text("")
			w.bool(true)
			w.int64(version)
			w.int64(position)
			w.time(now)
			w.int32(members)
			w.bool(members > 64)
		}
	}}
	members := table{"conversation_members", "member, conversation_id, joined_version, joined_index, large, period",
		func(w *copier) {
			add := func(id, member string, index, position int, large bool) {
				w.row(6)
				w.text(member)
				w.text(id)
				w.int64(1)
				w.int32(index)
				w.bool(large)
				if large {
					w.int64(position >> 20)
				} else {
					w.int64(position >> 8)
				}
			}
			for c := range s.conversations {
				id := "c" + strconv.Itoa(c)
				add(id, "user"+strconv.Itoa(c%s.users), 0, newest(c), false)
				add(id, s.second(c), 1, newest(c), false)
			}
			for m := range s.members {
				add("big", "user"+strconv.Itoa(m), m, s.events/10*10, s.members > 64)
			}
		}}

	var loading errgroup.Group
	loading.SetLimit(2)
	for _, together := range [][]table{{events}, {messages}, {rooms}, {outcomes}, {memberships, conversations, members}} {
		loading.Go(func() error { return s.load(b.Context(), b, together) })
	}
	must(b, loading.Wait())
	for _, statement := range []string{"VACUUM ANALYZE", "CHECKPOINT"} {
		_, err := s.pool.Exec(b.Context(), statement)
		must(b, err)
	}
}

// table describes the rows to load into one table.
type table struct {
	name, columns string
	rows          func(*copier)
}

func (s *sized) load(ctx context.Context, b *testing.B, tables []table) error {
	begin := time.Now()
	var names []string
	for _, t := range tables {
		names = append(names, t.name)
	}
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		run := func(statement string) error {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return fmt.Errorf("%s: %w", statement, err)
			}
			return nil
		}
		if err := run("SELECT set_config('search_path', 'chat', true), set_config('maintenance_work_mem', '512MB', true)"); err != nil {
			return err
		}
		var again []string
		for _, list := range []string{sqlConstraints, sqlIndexes} {
			rows, err := tx.Query(ctx, list, names)
			if err != nil {
				return err
			}
			var drop []string
			var d, a string
			if _, err = pgx.ForEachRow(rows, []any{&d, &a}, func() error {
				drop, again = append(drop, d), append(again, a)
				return nil
			}); err != nil {
				return err
			}
			for _, statement := range drop {
				if err := run(statement); err != nil {
					return err
				}
			}
		}
		// Create foreign keys last, because they need the primary keys of the tables that they refer to.
		slices.SortStableFunc(again, func(x, y string) int {
			return strings.Count(x, "FOREIGN KEY") - strings.Count(y, "FOREIGN KEY")
		})
		if err := run("TRUNCATE " + strings.Join(names, ", ")); err != nil {
			return err
		}
		for _, t := range tables {
			if err := t.copy(ctx, tx); err != nil {
				return err
			}
		}
		copied := time.Since(begin)
		for _, statement := range again {
			if err := run(statement); err != nil {
				return err
			}
		}
		b.Logf("%s: copied in %.1f s, indexes in %.1f s", strings.Join(names, ", "), copied.Seconds(),
			(time.Since(begin) - copied).Seconds())
		return nil
	})
	if err != nil {
		return fmt.Errorf("load %v: %w", names, err)
	}
	return nil
}

func (t table) copy(ctx context.Context, tx pgx.Tx) error {
	r, w := io.Pipe()
	go func() {
		c := &copier{w: w}
		c.buffer = append(c.buffer, "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
		t.rows(c)
		c.int16alone(-1)
		c.flush()
		_ = w.Close() // never fails
	}()
	_, err := tx.Conn().PgConn().CopyFrom(ctx, r,
		"COPY "+t.name+" ("+t.columns+") FROM STDIN (FORMAT binary, FREEZE)")
	_ = r.CloseWithError(io.ErrClosedPipe) // ends the goroutine that writes, if COPY failed
	if err != nil {
		return fmt.Errorf("copy %s: %w", t.name, err)
	}
	return nil
}

// copier writes rows in the binary format of COPY.
type copier struct {
	w      io.Writer
	buffer []byte
}

func (c *copier) flush() {
	_, _ = c.w.Write(c.buffer) // fails only after COPY has failed and reported its error
	c.buffer = c.buffer[:0]
}

func (c *copier) row(columns int16) {
	if len(c.buffer) > 60_000 {
		c.flush()
	}
	c.int16alone(columns)
}

func (c *copier) int16alone(n int16) { c.buffer = binary.BigEndian.AppendUint16(c.buffer, uint16(n)) }
func (c *copier) length(n int)       { c.buffer = binary.BigEndian.AppendUint32(c.buffer, uint32(n)) }
func (c *copier) null()              { c.length(-1) }
func (c *copier) int16(n int16)      { c.length(2); c.int16alone(n) }
func (c *copier) int32(n int)        { c.length(4); c.length(n) }

func (c *copier) int64(n int) {
	c.length(8)
	c.buffer = binary.BigEndian.AppendUint64(c.buffer, uint64(n))
}

func (c *copier) time(t time.Time) {
	c.int64(int(t.Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).Microseconds()))
}

func (c *copier) bool(is bool) {
	c.length(1)
	if is {
		c.buffer = append(c.buffer, 1)
	} else {
		c.buffer = append(c.buffer, 0)
	}
}

func (c *copier) text(parts ...string) {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	c.length(n)
	for _, p := range parts {
		c.buffer = append(c.buffer, p...)
	}
}

func (c *copier) bytes(raw []byte) {
	c.length(len(raw))
	c.buffer = append(c.buffer, raw...)
}

// uuid writes a UUID that is different for each n.
func (c *copier) uuid(n int) {
	c.length(16)
	c.buffer = binary.BigEndian.AppendUint64(c.buffer, uint64(n)*0x9e3779b97f4a7c15)
	c.buffer = binary.BigEndian.AppendUint64(c.buffer, uint64(n))
}

// texts writes a text[] with one element.
func (c *copier) texts(s string) {
	const oidText = 25
	c.length(20 + 4 + len(s))
	for _, n := range []int{1, 0, oidText, 1, 1} { // dimensions, nulls, type, size and lower bound
		c.length(n)
	}
	c.text(s)
}
