package projection_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	toyv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/toy/v1"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/eventlog/projection"
)

// bells declares a projection of the streams of kind bell, which have three types of events. The projection handles two
// types and ignores the third.
func bells(name string) *projection.Projection {
	p := projection.Declare(name, projection.Options{Streams: []string{"bell"}, Tables: []string{name}})
	rang := p.Statement(1, `INSERT INTO bells (id) SELECT unnest($1::text[])`)
	projection.On(p, func(b *projection.Batch, e projection.Event, _ *toyv1.BellRang) { b.Add(rang, e.ID) })
	projection.On(p, func(b *projection.Batch, e projection.Event, _ *toyv1.BellAnswered) { b.Remove(rang, e.ID) })
	p.Ignore(&toyv1.BellSilenced{})
	return p
}

// A projection with IgnoreOthers needs no line for the other events of its streams. Events of other streams, functions
// that are declared afterwards, and events that this release does not know are errors nevertheless.
func TestIgnoreOthers_LeavesOutTheOtherEvents(t *testing.T) {
	t.Parallel()
	c, err := catalog.Load()
	require.NoError(t, err)
	p := projection.Declare("bells", projection.Options{Streams: []string{"bell"}, Tables: []string{"bells"}})
	rang := p.Statement(1, `INSERT INTO bells (id) SELECT unnest($1::text[])`)
	projection.On(p, func(b *projection.Batch, e projection.Event, _ *toyv1.BellRang) { b.Add(rang, e.ID) })
	p.IgnoreOthers()
	require.NoError(t, projection.Check(c, "toy", p))
	happened := func(event string) []envelope.Event { return []envelope.Event{{Stream: "bell:1", Type: event}} }
	require.NoError(t, p.Apply(t.Context(), nil, happened("toy.bell_silenced")))
	require.ErrorContains(t, p.Apply(t.Context(), nil, happened("toy.bell_stolen")), "this release has no function for the event")
	projection.On(p, func(*projection.Batch, projection.Event, *toyv1.BellAnswered) {})
	require.ErrorContains(t, projection.Check(c, "toy", p), "event toy.bell_answered is declared twice")
}

func TestCheck_NamesForgottenAndUnknownEvents(t *testing.T) {
	t.Parallel()
	c, err := catalog.Load()
	require.NoError(t, err)
	require.NoError(t, projection.Check(c, "toy", bells("bells"), bells("others")))

	declare := func(streams ...string) *projection.Projection {
		return projection.Declare("notes", projection.Options{Streams: streams, Tables: []string{"notes"}})
	}
	noted := func(*projection.Batch, projection.Event, *toyv1.NoteWritten) {}
	with := func(p *projection.Projection, change func(*projection.Projection)) *projection.Projection {
		change(p)
		return p
	}
	for _, test := range []struct {
		name     string
		all      []*projection.Projection
		contains string
	}{
		{"an event without a function", []*projection.Projection{declare("diary")},
			"projection notes: event toy.note_written of streams of kind diary has no function; add one with projection.On, or name"},
		{"a function for an event of another kind", []*projection.Projection{with(bells("bells"), func(p *projection.Projection) {
			projection.On(p, noted)
		})}, "projection bells: event toy.note_written has a function, but is not of the streams"},
		{"an event of another kind that is ignored", []*projection.Projection{with(bells("bells"), func(p *projection.Projection) {
			p.Ignore(&toyv1.NoteWritten{})
		})}, "projection bells: event toy.note_written is ignored, but is not of the streams"},
		{"two functions for an event", []*projection.Projection{with(declare("diary"), func(p *projection.Projection) {
			projection.On(p, noted)
			projection.On(p, noted)
		})}, "projection notes: event toy.note_written is declared twice"},
		{"a function for a command", []*projection.Projection{with(bells("bells"), func(p *projection.Projection) {
			p.Ignore(&toyv1.WriteNote{})
		})}, "projection bells: edumatrix.toy.v1.WriteNote is not an event"},
		{"streams of another service", []*projection.Projection{declare("post")}, `projection notes: toy has no streams of kind "post"`},
		{"streams that are not declared", []*projection.Projection{declare("dairy")}, `projection notes: toy has no streams of kind "dairy"`},
		{"no tables", []*projection.Projection{projection.Declare("none", projection.Options{})}, "projection none: it has no tables"},
		{"a statement with too many columns in its key", []*projection.Projection{with(bells("bells"), func(p *projection.Projection) {
			p.Statement(5, "INSERT INTO bells")
		})}, "projection bells: the key of a statement has 5 columns; 0 to 4 are allowed"},
		{"two projections with one name", []*projection.Projection{bells("bells"), bells("bells")}, `two projections are named "bells"`},
		{"the name of the timers", []*projection.Projection{bells("timers")}, `two projections are named "timers"`},
		{"two projections with one table", []*projection.Projection{
			projection.Declare("a", projection.Options{Tables: []string{"rows"}}),
			projection.Declare("b", projection.Options{Tables: []string{"rows"}})}, "projections a and b both have the table rows"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			require.ErrorContains(t, projection.Check(c, "toy", test.all...), test.contains)
		})
	}
}
