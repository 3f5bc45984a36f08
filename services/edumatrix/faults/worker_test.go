//go:build integration

package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/edumatrix/interlinked/shared/client"
)

// worker sends commands from a device. It sends each command after the outcome of the previous command.
type worker struct {
	device *device
	random *rand.Rand
	sent   int
}

// something sends a random command.
func (w *worker) something() {
	d, talk := w.device, &w.device.p.talk
	t, ok := talk.pick(w.random, d.user)
	if !ok {
		w.startGroup(d.p.some(w.random, 4))
		return
	}
	in := map[string]any{"conversation_id": t.id}
	switch n := w.random.IntN(100); {
	case n < 44:
		w.say(t.id)
	case n < 54:
		w.answer(t)
	case n < 56:
		w.pin()
	case n < 60:
		w.react()
	case n < 62:
		w.mark(t)
	case n < 64:
		w.lead(t)
	case n < 72:
		w.change("chat.edit_message")
	case n < 77:
		w.change("chat.delete_message")
	case n < 85:
		user := d.p.some(w.random, 1)[0]
		in["user_id"] = user
		if a := w.do("chat", "chat.add_member", "", in); a.Kind == Committed {
			talk.joined(t.id, user)
		}
	case n < 89 && len(t.members) > 0:
		user := t.members[w.random.IntN(len(t.members))]
		in["user_id"] = user
		if a := w.do("chat", "chat.remove_member", "", in); a.Kind == Committed {
			talk.left(t.id, user)
		}
	case n < 91:
		if a := w.do("chat", "chat.leave", "", in); a.Kind == Committed {
			talk.left(t.id, d.user)
		}
	case n < 94:
		w.startGroup(d.p.some(w.random, 3+w.random.IntN(4)))
	case n < 97:
		w.startDirect(d.p.some(w.random, 1)[0])
	default:
		text := w.text()
		w.do("feed", "feed.create_post", text, map[string]any{"body": text})
	}
}

func (w *worker) say(conversation string) Answer {
	text := w.text()
	return w.do("chat", "chat.send_message", text, map[string]any{"conversation_id": conversation, "body": text})
}

// answer sends an answer to one of the user's own messages, often in its thread, and mentions a member.
func (w *worker) answer(t talk) {
	m, ok := w.device.own(w.random)
	if !ok {
		w.say(t.id)
		return
	}
	text := w.text()
	data := map[string]any{"conversation_id": m.conversation, "body": text, "reply_to": m.id, "in_thread": w.random.IntN(3) > 0,
		"mentions_all": w.random.IntN(8) == 0}
	if len(t.members) > 0 {
		data["mentioned_user_ids"] = []string{t.members[w.random.IntN(len(t.members))]}
	}
	w.do("chat", "chat.send_message", text, data)
}

// pin pins or unpins one of the user's own messages.
func (w *worker) pin() {
	if m, ok := w.device.own(w.random); ok {
		command := "chat.pin_message"
		if w.random.IntN(3) == 0 {
			command = "chat.unpin_message"
		}
		w.do("chat", command, "", map[string]any{"conversation_id": m.conversation, "message_id": m.id})
	}
}

// react adds a reaction to one of the user's own messages, or removes one.
func (w *worker) react() {
	if m, ok := w.device.own(w.random); ok {
		command := "chat.add_reaction"
		if w.random.IntN(3) == 0 {
			command = "chat.remove_reaction"
		}
		w.do("chat", command, "", map[string]any{"conversation_id": m.conversation, "message_id": m.id,
			"emoji": []string{"👍", "🎉", ":party:"}[w.random.IntN(3)]})
	}
}

// mark moves the user's marker in a conversation forward or back.
func (w *worker) mark(t talk) {
	version := 1 + w.random.IntN(200)
	if w.random.IntN(4) == 0 {
		w.do("chat", "chat.mark_unread", "", map[string]any{"conversation_id": t.id, "from": version})
		return
	}
	w.do("chat", "chat.mark_read", "", map[string]any{"conversation_id": t.id, "up_to": version})
}

// lead changes the title, the picture or a role of a conversation. Often the command is refused, because the user is
// neither its owner nor an admin.
func (w *worker) lead(t talk) {
	in := map[string]any{"conversation_id": t.id}
	switch n := w.random.IntN(6); {
	case n == 0:
		text := w.text()
		in["title"] = text[:min(len(text), 100)]
		w.do("chat", "chat.set_title", in["title"].(string), in)
	case n == 1:
		in["picture"] = fmt.Sprintf("https://school.example/%d.png", w.random.IntN(10))
		w.do("chat", "chat.set_picture", "", in)
	case len(t.members) > 0:
		in["user_id"] = t.members[w.random.IntN(len(t.members))]
		in["role"] = []string{"member", "admin", "admin", "owner"}[w.random.IntN(4)]
		w.do("chat", "chat.set_role", "", in)
	}
}

func (w *worker) change(how string) {
	m, ok := w.device.own(w.random)
	if !ok {
		return
	}
	data := map[string]any{"conversation_id": m.conversation, "message_id": m.id}
	text := ""
	if how == "chat.edit_message" {
		text = w.text()
		data["body"] = text
	}
	w.do("chat", how, text, data)
}

func (w *worker) startGroup(users []string) {
	title := w.text()
	title = title[:min(len(title), 100)]
	a := w.do("chat", "chat.start_group", title, map[string]any{"title": title, "user_ids": users})
	if a.Kind == Committed {
		w.device.p.talk.add(&talk{id: conversationOf(a.Stream), owner: w.device.user, members: append(users, w.device.user)})
	}
}

func (w *worker) startDirect(user string) {
	if user == w.device.user {
		return
	}
	a := w.do("chat", "chat.start_direct", "", map[string]any{"user_id": user})
	if a.Kind == Committed {
		w.device.p.talk.add(&talk{id: conversationOf(a.Stream), direct: true, members: []string{user, w.device.user}})
	}
}

func (w *worker) text() string {
	w.sent++
	return fmt.Sprintf("%s %d %s", w.device.name, w.sent, strings.Repeat("x", w.random.IntN(200)))
}

// do sends a command until its outcome is known. Sometimes a random device of the user sends the same command at the
// same time. Sometimes a random device of the user sends the command again after its outcome.
func (w *worker) do(owner, name, text string, data map[string]any) Answer {
	d := w.device
	id := uuid.Must(uuid.NewRandomFromReader(seeded{w.random})).String()
	c := &Command{Actor: d.user, ID: id, Owner: owner, Type: name, Text: text}
	var twice sync.WaitGroup
	if w.random.IntN(25) == 0 {
		other := d.p.sibling(d, w.random)
		twice.Go(func() { other.deliver(c, data) })
	}
	a := d.deliver(c, data)
	twice.Wait()
	if w.random.IntN(30) == 0 && a.Final() {
		a = d.p.sibling(d, w.random).deliver(c, data)
	}
	return a
}

// seeded is an io.Reader of random bytes that follow from the seed. The ids of commands are made of these bytes.
type seeded struct{ *rand.Rand }

func (s seeded) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(s.Uint32())
	}
	return len(p), nil
}

// sibling returns a random device of the user of the device d. It may return d itself.
func (p *population) sibling(d *device, r *rand.Rand) *device {
	var all []*device
	for _, other := range p.devices {
		if other.user == d.user {
			all = append(all, other)
		}
	}
	return all[r.IntN(len(all))]
}

// answerTime is the maximum time that a gateway may take to answer a command: 5 s, plus the longest delay that a fault
// causes.
const answerTime = 25 * time.Second

// queuedTime is the maximum time until an outcome arrives after the answer "queued". Several faults in a row take less
// than this time, even on a machine on which a store starts slowly.
const queuedTime = 2 * time.Minute

// deliver sends a command again and again until it has an outcome. It returns the outcome. It returns an empty answer
// if the run ends first, or if no outcome arrives within queuedTime after "queued".
func (d *device) deliver(c *Command, data map[string]any) Answer {
	for d.p.ctx.Err() == nil {
		at := d.await(d.p.ctx)
		if at == nil {
			break
		}
		later, forget := d.expect(c.ID) // before the command is sent, because the outcome may arrive at once
		d.p.h.Send(c)
		a := d.once(at, c, data)
		if a.Kind == Queued {
			d.p.h.Tell(c, a)
			select {
			case a = <-later:
			case <-at.Done():
			case <-d.p.ctx.Done():
			case <-time.After(queuedTime):
				forget()
				// Do not send the command again. Otherwise the history would not show that a queued command was lost.
				return Answer{}
			}
		}
		forget()
		if a.Kind != "" && a.Kind != Queued {
			d.p.h.Tell(c, a)
		}
		if a.Final() {
			return a
		}
		sleep(d.p.ctx, 100*time.Millisecond)
	}
	return Answer{}
}

// once sends a command on a connection and returns the answer. The answer is empty if the connection is lost, and
// Nothing if no answer arrives within answerTime.
func (d *device) once(at *connection, c *Command, data map[string]any) Answer {
	ctx, cancel := context.WithTimeout(d.p.ctx, answerTime)
	defer cancel()
	o, err := at.CommandAs(ctx, c.ID, c.Type, data)
	var refused *client.Error
	switch {
	case err == nil:
		return Answer{Kind: o.Kind, Stream: o.Stream, Version: o.Version}
	case errors.Is(err, context.DeadlineExceeded):
		return Answer{Kind: Nothing}
	case !errors.As(err, &refused):
		return Answer{}
	}
	switch refused.Code {
	case "queued":
		return Answer{Kind: Queued}
	case "unavailable", "too_many_waiting":
		return Answer{Kind: Unavailable, Code: refused.Code}
	case "failed":
		return Answer{Kind: Failed, Code: refused.Code}
	}
	return Answer{Kind: Refused, Code: refused.Code}
}
