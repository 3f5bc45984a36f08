package interval_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/interval"
)

func TestMissed_HasTheEventsOfTheIntervalsAboveAPosition(t *testing.T) {
	t.Parallel()
	first := interval.Interval{Room: "conversation:1", From: 3, Until: 5}
	second := interval.Interval{Room: "conversation:1", From: 7}
	own := func(after, head catalog.Position) interval.Gap {
		return interval.Gap{Room: "user:bob", After: after, Until: head}
	}
	in := func(after, until catalog.Position) interval.Gap {
		return interval.Gap{Room: "conversation:1", After: after, Until: until}
	}
	for name, test := range map[string]struct {
		after, head catalog.Position
		want        []interval.Gap
	}{
		"from the beginning":                     {0, 9, []interval.Gap{own(0, 9), in(2, 5), in(6, 9)}},
		"within the first interval":              {4, 9, []interval.Gap{own(4, 9), in(4, 5), in(6, 9)}},
		"at the end of the first interval":       {5, 9, []interval.Gap{own(5, 9), in(6, 9)}},
		"within the second interval":             {8, 9, []interval.Gap{own(8, 9), in(8, 9)}},
		"up to a head within the first interval": {0, 4, []interval.Gap{own(0, 4), in(2, 4)}},
		"when nothing was missed":                {9, 9, []interval.Gap{}},
		"from above the head":                    {99, 9, []interval.Gap{}},
	} {
		require.Equal(t, test.want, interval.Missed("bob", nil, []interval.Interval{first, second}, test.after, test.head), name)
	}
	require.Equal(t, []interval.Gap{own(1, 2), {Room: "post:7", After: 1, Until: 2}}, interval.Missed("bob", []string{"post:7"}, nil, 1, 2))
	require.Equal(t, []catalog.Position{3, 5}, first.Boundaries(2))
	require.Equal(t, []catalog.Position{5}, first.Boundaries(3))
	require.Empty(t, first.Boundaries(5))
	require.Equal(t, []catalog.Position{7}, second.Boundaries(6), "the second interval has not ended")
}
