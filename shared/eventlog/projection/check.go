package projection

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/eventlog"
)

// Check returns an error for each event of a projection's streams for which the projection has neither On nor Ignore.
// It also returns an error
//   - for each event that a projection declares twice or that is not of its streams;
//   - for each declared message that is not an event;
//   - for each kind in a projection's Streams that the owner does not have;
//   - for a projection without tables, and for a statement whose key has too many columns (or a negative number);
//   - for each table that two projections share, and for each projection that has the name of another one or of the
//     timers (eventlog.TimersName).
func Check(c *catalog.Catalog, owner string, all ...*Projection) error {
	var problems []error
	names := map[string]bool{eventlog.TimersName: true} // the timers are rebuilt under this name
	tables := map[string]*Projection{}
	for _, p := range all {
		if names[p.name] {
			problems = append(problems, fmt.Errorf("two projections are named %q", p.name))
		}
		names[p.name] = true
		for _, table := range p.o.Tables {
			if other := tables[table]; other != nil {
				problems = append(problems, fmt.Errorf("projections %s and %s both have the table %s", other.name, p.name, table))
			}
			tables[table] = p
		}
		problems = append(problems, p.check(c, owner)...)
	}
	return errors.Join(problems...)
}

func (p *Projection) check(c *catalog.Catalog, owner string) (problems []error) {
	problems = slices.Clone(p.problems)
	fail := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("projection %s: "+format, append([]any{p.name}, args...)...))
	}
	read := map[string]bool{}
	for _, kind := range p.o.Streams {
		if of, _ := c.OwnerOf(kind); of != owner {
			fail("%s has no streams of kind %q", owner, kind)
		}
		for _, e := range c.EventsOf(kind) {
			read[e.Name] = true
			if p.functions[e.Name] == nil && !p.ignored[e.Name] {
				fail("event %s of streams of kind %s has no function; add one with projection.On, or name the event in Ignore",
					e.Name, kind)
			}
		}
	}
	for _, event := range slices.Sorted(maps.Keys(p.functions)) {
		if event != "" && !read[event] {
			fail("event %s has a function, but is not of the streams that the projection reads; add its kind to Streams", event)
		}
	}
	for _, event := range slices.Sorted(maps.Keys(p.ignored)) {
		if event != "" && !read[event] {
			fail("event %s is ignored, but is not of the streams that the projection reads", event)
		}
	}
	if len(p.o.Tables) == 0 {
		fail("it has no tables")
	}
	for _, s := range p.statements {
		if s.key < 0 || s.key > maxKey {
			fail("the key of a statement has %d columns; 0 to %d are allowed: %s", s.key, maxKey, s.sql)
		}
	}
	return problems
}

// CheckTables returns an error for each table of a service's schema that belongs neither to the log nor to a
// projection, except tables for which the function other returns true, such as those of jobs. It also returns an error
// for each table that a projection names and that does not exist.
//
// If a later release has migrated the schema, tables without a projection are not an error, so that this release can be
// started again after the later one.
func CheckTables(ctx context.Context, l *eventlog.Log, other func(table string) bool, all ...*Projection) error {
	tables, later, err := l.OwnerTables(ctx)
	if err != nil {
		return err
	}
	var problems []error
	declared := map[string]bool{}
	for _, p := range all {
		for _, table := range p.o.Tables {
			declared[table] = true
			if !slices.Contains(tables, table) {
				problems = append(problems, fmt.Errorf("projection %s: there is no table %s; create it in a migration, or correct "+
					"the name in Tables", p.name, table))
			}
		}
	}
	for _, table := range tables {
		if !declared[table] && !other(table) && !later {
			problems = append(problems, fmt.Errorf("table %s belongs to no projection; add it to the Tables of the projection "+
				"that writes it, or drop it in a migration", table))
		}
	}
	return errors.Join(problems...)
}
