//go:build integration

package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/edumatrix/interlinked/shared/auth"
	"github.com/edumatrix/interlinked/shared/client"
)

// presenceTime is how long who is here may be shown wrongly once everything is back: docs/guarantees.md says so, of a
// Redis that was emptied or has forgotten the newest as well.
const presenceTime = 10 * time.Second

// watcher looks at all users.
type watcher struct {
	*client.Client
	mu     sync.Mutex
	newest map[string]client.Event // by user
	news   chan struct{}
}

func (m *mesh) watchPresence(ctx context.Context, p *population) (*watcher, error) {
	token, err := auth.Mint(secret, auth.User{ID: "watcher"}, time.Hour)
	if err != nil {
		return nil, err
	}
	w := &watcher{newest: map[string]client.Event{}, news: make(chan struct{}, 1)}
	w.Client, err = client.Dial(ctx, client.Options{URL: p.sockets[0], Token: token, OnEvent: w.see})
	if err != nil {
		return nil, err
	}
	var rooms []string
	for _, user := range p.users {
		rooms = append(rooms, "presence:"+user)
	}
	if _, err := w.Subscribe(ctx, rooms...); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

func (w *watcher) see(e client.Event) {
	var of struct {
		UserID string `json:"user_id"`
	}
	if json.Unmarshal(e.Data, &of) != nil || !strings.HasPrefix(e.Type, "presence.") {
		return
	}
	w.mu.Lock()
	if e.Version > w.newest[of.UserID].Version {
		w.newest[of.UserID] = e
	}
	w.mu.Unlock()
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// await waits until the newest of every user is an event of a type.
func (w *watcher) await(users []string, kind string) error {
	late := time.NewTimer(presenceTime)
	defer late.Stop()
	for {
		w.mu.Lock()
		i := slices.IndexFunc(users, func(u string) bool { return w.newest[u].Type != kind })
		var last string
		if i >= 0 {
			last = w.newest[users[i]].Type
		}
		w.mu.Unlock()
		if i < 0 {
			return nil
		}
		select {
		case <-w.news:
		case <-w.Done():
			return fmt.Errorf("who watches was disconnected: %w", w.Err())
		case <-late.C:
			return fmt.Errorf("after %v %s is shown as %q, not %q", presenceTime, users[i], last, kind)
		}
	}
}

// present has everybody shown as here, as soon as all is back and everybody connected.
func (m *mesh) present(p *population) {
	m.watched(p, func(w *watcher) {
		if err := w.await(p.users, "presence.came_online"); err != nil {
			m.broken("presence: %v", err)
		}
	})
}

// leave ends the population, and has everybody shown as gone.
func (m *mesh) leave(p *population) {
	defer p.end()
	m.watched(p, func(w *watcher) {
		p.end()
		if err := w.await(p.users, "presence.went_offline"); err != nil {
			m.broken("presence, when all have left: %v", err)
		}
	})
}

func (m *mesh) watched(p *population, do func(*watcher)) {
	ctx, cancel := context.WithTimeout(context.Background(), presenceTime)
	defer cancel()
	w, err := m.watchPresence(ctx, p)
	if err != nil {
		m.broken("nobody can watch who is here: %v", err)
		return
	}
	defer w.Close()
	do(w)
}
