//go:build integration

package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"
	"github.com/edumatrix/interlinked/services/presence/store"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

// BenchmarkSize measures the calls of presence with 500 and with 50,000 users online: snapshots for users who subscribe
// to the presence of others, reports of gateways, and reads.
func BenchmarkSize(b *testing.B) {
	const users = 50_000
	small, large := measureSize(b, users/100), measureSize(b, users)
	meshtest.LogSizes(b, users/100, users, small, large)
	b.ReportMetric(0, "ns/op")
}

func measureSize(b *testing.B, users int) (all []meshtest.Measured) {
	b.Helper()
	client, err := meshtest.Redis(b).Open(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	s := store.New(client, "size.", time.Hour)
	const perPart = 500
	user := func(n int) string { return fmt.Sprint("user", n) }
	report := &meshv1.ReportRequest{Gateway: "g", Number: 1, All: true}
	send := func(want store.Answer) error {
		answer, _, err := s.Report(b.Context(), report)
		if err == nil && answer != want {
			err = fmt.Errorf("the answer to the report is %q", answer)
		}
		report.Number++
		report.All, report.Changes = false, nil
		return err
	}
	change := func(connection, user string, gone bool) {
		report.Changes = append(report.Changes, &meshv1.ConnectionChange{Connection: connection, User: user, Gone: gone,
			Session: "s-" + connection})
		if gone {
			report.Count--
			report.Digest -= store.Hash(connection, user)
		} else {
			report.Count++
			report.Digest += store.Hash(connection, user)
		}
	}
	for n := range users {
		change(user(n), user(n), false)
		if len(report.Changes) == perPart || n == users-1 {
			if err := send(store.OK); err != nil {
				b.Fatal(err)
			}
		}
	}
	for {
		dirty, err := s.Dirty(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if len(dirty) == 0 {
			break
		}
		if err := s.Published(b.Context(), dirty); err != nil {
			b.Fatal(err)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	measure := func(name string, do func(ctx context.Context) (int, error)) {
		b.Helper()
		all = append(all, meshtest.Measure(b, name, do))
	}
	snapshot := func(of int, next func(n int) int) func(context.Context) (int, error) {
		return func(ctx context.Context) (int, error) {
			names := make([]string, of)
			for n := range names {
				names[n] = user(next(n))
			}
			states, err := s.States(ctx, names)
			for _, state := range states {
				if !state.Online {
					return 0, fmt.Errorf("%s is offline", state.User)
				}
			}
			return len(states), err
		}
	}
	anyone := func(int) int { return r.IntN(users) }
	measure("snapshot of one user", snapshot(1, anyone))
	measure("snapshot of 50 users (a client's list)", snapshot(50, anyone))
	at := 0
	measure("snapshot of everyone, the next 500", func(ctx context.Context) (int, error) {
		begin := at
		at = (at + perPart) % users
		return snapshot(perPart, func(n int) int { return begin + n })(ctx)
	})
	measure("sessions of a user", func(ctx context.Context) (int, error) {
		sessions, err := s.Sessions(ctx, user(r.IntN(users)))
		return len(sessions), err
	})
	measure("report without changes", func(context.Context) (int, error) { return 0, send(store.OK) })
	measure("report of 20 new connections", func(context.Context) (int, error) {
		for n := range 20 {
			change(fmt.Sprintf("new-%d-%d", report.Number, n), user(r.IntN(users)), false)
		}
		return 20, send(store.OK)
	})
	measure("read of the unpublished changes", func(ctx context.Context) (int, error) {
		dirty, err := s.Dirty(ctx)
		return len(dirty), err
	})
	measure("search for expired leases", func(ctx context.Context) (int, error) { return s.Expire(ctx) })
	return all
}
