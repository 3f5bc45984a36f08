// Package consistency makes the answer of a query contain every commit up to the position that the request names
// (rpc.Position). Queries read projections, which follow the log a moment later. So the handler of a query runs only
// after the projections that the query is declared to read have reached this position.
package consistency

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/eventlog"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
	"github.com/edumatrix/interlinked/shared/rpc"
)

// patience is how long a query waits for its projections before it is refused. Projections are usually some
// milliseconds behind the log.
const patience = 3 * time.Second

// Projections maps the name of each query ("chat.history") to the name of the projection that it reads, or to the names
// that All returns.
type Projections map[string]string

// All returns the value of Projections for a query that reads several projections.
func All(names ...string) string { return strings.Join(names, separator) }

// separator is not part of the name of a projection.
const separator = ","

// Validate returns an error for each query under the served paths ("/edumatrix.chat.v1.ChatService/") that has no
// projection, and for each entry whose query or projection does not belong to the owner.
func (p Projections) Validate(c *catalog.Catalog, owner string, served, projections []string) (problems []error) {
	for _, name := range c.QueryNames() {
		q, _ := c.Query(name)
		isServed := func(path string) bool { return strings.HasPrefix(q.Procedure, path) }
		if slices.ContainsFunc(served, isServed) && p[name] == "" {
			problems = append(problems, fmt.Errorf("query %s is not declared to read a projection", name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p)) {
		if q, ok := c.Query(name); !ok || q.Owner != owner {
			problems = append(problems, fmt.Errorf("a projection of query %s: %s has no such query", name, owner))
		}
		for _, reads := range strings.Split(p[name], separator) {
			if p[name] != "" && !slices.Contains(projections, reads) {
				problems = append(problems, fmt.Errorf("query %s: there is no projection %q", name, reads))
			}
		}
	}
	return problems
}

// Interceptor returns the interceptor of the handlers of queries. Before it calls the handler of a query in the
// parameter projections, the interceptor waits until the query's projections have reached the position that the request
// names. It calls the handler again if the handler may have read rows that are older than this position (see
// projection.ReadConsistently). If a projection does not reach the position within 3 s, the query is refused as
// unavailable.
func Interceptor(log *eventlog.Log, c *catalog.Catalog, projections Projections) connect.Interceptor {
	byProcedure := map[string]string{}
	for name, reads := range projections {
		if q, ok := c.Query(name); ok {
			byProcedure[q.Procedure] = reads
		}
	}
	return connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (answer connect.AnyResponse, err error) {
			names, isQuery := byProcedure[r.Spec().Procedure]
			if isQuery {
				ctx = context.WithValue(ctx, sourceKey{}, source{log, strings.Split(names, separator)})
			}
			err = projection.ReadConsistently(ctx, log, func() (err error) {
				if isQuery {
					err = WaitFor(ctx, rpc.Position(ctx))
				}
				if err == nil {
					answer, err = next(ctx, r)
				}
				return err
			})
			if err != nil {
				return nil, err
			}
			return answer, nil
		}
	})
}

// source is the log and the projections that the query of a context reads.
type source struct {
	log         *eventlog.Log
	projections []string
}

type sourceKey struct{}

// WaitFor returns when the projections that the query of ctx reads have reached a position of the log; rpc.Now stands
// for the newest position. A handler calls WaitFor only if it needs a later position than the request names. After 3 s,
// WaitFor returns a refusal as unavailable.
func WaitFor(ctx context.Context, position catalog.Position) (err error) {
	s, ok := ctx.Value(sourceKey{}).(source)
	if !ok {
		return errors.New("wait for a projection: the context is not from a handler with consistency.Interceptor")
	}
	patient, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if position == rpc.Now {
		position, err = s.log.Head(patient)
	}
	for _, name := range s.projections {
		if err == nil {
			err = projection.WaitFor(patient, s.log, name, position)
		}
	}
	if err != nil && patient.Err() != nil && ctx.Err() == nil {
		return refusal.New(refusal.Unavailable, "the newest changes cannot be read yet; try again")
	}
	return err
}
