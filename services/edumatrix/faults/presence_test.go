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

// presenceTime is the maximum time for which presence may be wrong after all services and stores are back, as promised
// in docs/guarantees.md. The same maximum applies after Redis was emptied or has lost its newest writes.
const presenceTime = 10 * time.Second

// watcher is a client that subscribes to the presence of all users of a run.
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

// await waits until the newest presence event of every user is of the given type.
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
			return fmt.Errorf("the watcher was disconnected: %w", w.Err())
		case <-late.C:
			return fmt.Errorf("after %v the newest presence event of %s is %q, not %q", presenceTime, users[i], last, kind)
		}
	}
}

// present checks that every user is shown as online after all services, stores and clients are back.
func (m *mesh) present(p *population) {
	m.watched(p, func(w *watcher) {
		if err := w.await(p.users, "presence.came_online"); err != nil {
			m.broken("presence: %v", err)
		}
	})
}

// leave disconnects all clients, and checks that every user is shown as offline.
func (m *mesh) leave(p *population) {
	defer p.end()
	m.watched(p, func(w *watcher) {
		p.end()
		if err := w.await(p.users, "presence.went_offline"); err != nil {
			m.broken("presence after all clients have left: %v", err)
		}
	})
}

func (m *mesh) watched(p *population, do func(*watcher)) {
	ctx, cancel := context.WithTimeout(context.Background(), presenceTime)
	defer cancel()
	w, err := m.watchPresence(ctx, p)
	if err != nil {
		m.broken("cannot subscribe to presence: %v", err)
		return
	}
	defer w.Close()
	do(w)
}
