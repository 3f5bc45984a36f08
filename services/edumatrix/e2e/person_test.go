//go:build integration

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/edumatrix/interlinked/shared/client"
)

const patience = 20 * time.Second

// person is a client of a user: its current connection, and all events and outcomes that it has received on this and
// earlier connections.
type person struct {
	*client.Client
	t  testing.TB
	id string

	mu       sync.Mutex
	seen     []client.Event
	outcomes []client.Outcome
	news     chan struct{}
}

// someone returns a user id that no other test uses.
func someone(name string) string { return name + "-" + uuid.NewString()[:8] }

func (m *mesh) connect(t testing.TB, user string, gateway int, change ...func(*client.Options)) *person {
	t.Helper()
	p := &person{t: t, id: user, news: make(chan struct{}, 1)}
	wake := func() {
		select {
		case p.news <- struct{}{}:
		default:
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	o := client.Options{
		URL: m.socket(gateway), Token: mint(t, user, time.Hour), Protobuf: m.protobuf,
		OnEvent: func(e client.Event) {
			p.mu.Lock()
			p.seen = append(p.seen, e)
			p.mu.Unlock()
			wake()
		},
		OnOutcome: func(o client.Outcome) {
			p.mu.Lock()
			p.outcomes = append(p.outcomes, o)
			p.mu.Unlock()
			wake()
		},
	}
	for _, f := range change {
		f(&o)
	}
	c, err := client.Dial(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	p.Client = c
	t.Cleanup(c.Close)
	return p
}

// do sends a command that must be committed or unchanged.
func (p *person) do(name string, data any) client.Outcome {
	p.t.Helper()
	o, err := p.try(uuid.NewString(), name, data)
	if err != nil {
		p.t.Fatalf("%s of %s: %v", name, p.id, err)
	}
	return o
}

func (p *person) try(id, name string, data any) (client.Outcome, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return p.CommandAs(ctx, id, name, data)
}

// refused sends a command that must be refused with the given code.
func (p *person) refused(code, name string, data any) {
	p.t.Helper()
	_, err := p.try(uuid.NewString(), name, data)
	if got := codeOf(err); got != code {
		p.t.Fatalf("%s of %s: got %v, want the refusal %s", name, p.id, err, code)
	}
}

func codeOf(err error) string {
	var refused *client.Error
	if errors.As(err, &refused) {
		return refused.Code
	}
	return ""
}

func (p *person) ask(name string, data, answer any) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return p.Query(ctx, name, data, answer)
}

// await returns the first event in p.seen for which is(event) is true. It waits for the event if necessary.
func (p *person) await(what string, is func(client.Event) bool) (found client.Event) {
	p.t.Helper()
	p.until(func() (bool, string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		i := slices.IndexFunc(p.seen, is)
		if i >= 0 {
			found = p.seen[i]
		}
		return i >= 0, what
	})
	return found
}

// until calls a function, at first and then after each event and outcome, until it returns true. The text that the
// function returns describes what the person waits for.
func (p *person) until(done func() (bool, string)) {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		is, what := done()
		if is {
			return
		}
		select {
		case <-p.news:
		case <-p.Done():
			p.t.Fatalf("%s did not see %s: %v", p.id, what, p.Err())
		case <-deadline:
			p.t.Fatalf("%s did not see %s; it saw %s", p.id, what, p.summary())
		}
	}
}

func (p *person) awaitVersion(stream string, version int64) client.Event {
	p.t.Helper()
	return p.await(stream+" at its version", func(e client.Event) bool { return e.Stream == stream && e.Version == version })
}

func (p *person) summary() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []string
	for _, e := range p.seen {
		all = append(all, e.Type+" "+e.Stream)
	}
	return "[" + strings.Join(all, ", ") + "]"
}

// versions returns the versions of a stream that the person received, in the order of arrival.
func (p *person) versions(stream string) (all []int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.seen {
		if e.Stream == stream {
			all = append(all, e.Version)
		}
	}
	return all
}

// dense fails the test unless the versions of a stream that the person received are from, from+1, …, to, in this order.
func (p *person) dense(stream string, from, to int64) {
	p.t.Helper()
	got := p.versions(stream)
	if int64(len(got)) != to-from+1 {
		p.t.Fatalf("%s saw %d events of %s, want versions %d to %d once each: %v", p.id, len(got), stream, from, to, got)
	}
	for i, v := range got {
		if v != from+int64(i) {
			p.t.Fatalf("%s saw %s out of order: %v", p.id, stream, got)
		}
	}
}

func field(e client.Event, name string) string {
	var data map[string]any
	if json.Unmarshal(e.Data, &data) != nil {
		return ""
	}
	s, _ := data[name].(string)
	return s
}

func conversationOf(o client.Outcome) string { return strings.TrimPrefix(o.Stream, "conversation:") }

type history struct {
	Messages []struct {
		MessageID string `json:"message_id"`
		Version   int64  `json:"version"`
		Author    string `json:"author"`
		Body      string `json:"body"`
		Deleted   bool   `json:"deleted"`
	} `json:"messages"`
	More    bool  `json:"more"`
	Version int64 `json:"version"`
}

// all reads the history of a conversation, page by page, and returns the bodies of its messages.
func (p *person) all(conversation string) (bodies []string) {
	p.t.Helper()
	for after := int64(0); ; {
		var page history
		q := map[string]any{"conversation_id": conversation, "limit": 200, "after": after} // after 0: the first page
		if err := p.ask("chat.history", q, &page); err != nil {
			p.t.Fatalf("history of %s: %v", conversation, err)
		}
		for _, m := range page.Messages {
			bodies = append(bodies, m.Body)
			after = m.Version
		}
		if !page.More {
			return bodies
		}
	}
}

func timeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

// subscribe subscribes to a room that needs no membership.
func (p *person) subscribe(room string) (client.Subscribed, error) {
	ctx, cancel := timeout()
	defer cancel()
	return p.Subscribe(ctx, room)
}
