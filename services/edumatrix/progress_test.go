package edumatrix

import (
	"bytes"
	"strings"
	"testing"
	"time"

	meshv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/mesh/v1"

	"github.com/edumatrix/interlinked/proto/catalog"
)

func TestProgress_IsABarOnATerminalAndLinesElsewhere(t *testing.T) {
	t.Parallel()
	for _, terminal := range []bool{true, false} {
		var out bytes.Buffer
		now := time.Unix(0, 0)
		p := &progress{out: &out, terminal: terminal, now: func() time.Time { return now }}
		for position := range catalog.Position(101) {
			p.at("build", position*10, 1000)
			now = now.Add(time.Millisecond)
		}
		p.at("swap", 1000, 1000)
		p.end()
		got := out.String()
		if terminal {
			if want := "build    [##############################] 100%  1000 of 1000"; !strings.Contains(got, want) ||
				!strings.Contains(got, "[...............") || !strings.HasSuffix(got, "\n") || strings.Count(got, "\r") > 8 {
				t.Errorf("%q", got)
			}
		} else if want := "build: 0 of 1000 (0%)\nswap: 1000 of 1000 (100%)\n"; got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

func TestRebuilt_IsPrintedAsADiff(t *testing.T) {
	t.Parallel()
	r := &meshv1.Rebuilt{Projections: []string{"conversations"}, Position: 12, HeldMicroseconds: 4321, Tables: []*meshv1.TableDifference{
		{Table: "messages", OldRows: 3, NewRows: 3, Differ: 60, Rows: []*meshv1.RowDifference{{Old: `{"a": 1}`, New: `{"a": 2}`},
			{New: `{"b": "` + "\x1b" + `"}`}}},
		{Table: "members", OldRows: 2, NewRows: 2}}, Behind: 7, Left: "a view hangs on it"}
	var out bytes.Buffer
	printRebuilt(&out, false, "chat", r)
	want := `conversations of chat rebuilt as of position 12; the log was held for 4.3ms

TABLE     OLD ROWS  NEW ROWS  DIFFER
messages  3         3         60
members   2         2         0

--- messages, as it was
+++ messages, from the log
- {"a": 1}
+ {"a": 2}
+ {"b": "·"}
… and 58 more rows

the old rows had stopped at position 7; see the service's log
not cleaned up: a view hangs on it
`
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	out.Reset()
	printRebuilt(&out, false, "chat", &meshv1.Rebuilt{Projections: []string{"conversations"}, Tables: r.Tables[1:]})
	if !strings.HasSuffix(out.String(), "equal, row for row\n") {
		t.Errorf("%s", out.String())
	}
	out.Reset()
	printRebuilt(&out, false, "chat", &meshv1.Rebuilt{Projections: []string{"conversations"}, Left: "could not be compared"})
	if got := out.String(); strings.Contains(got, "equal") || !strings.HasSuffix(got, "\n\ncould not be compared\n") {
		t.Errorf("%s", got)
	}
}

func TestReplay_AcceptsDatesTimesAndDurations(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"": {}, "2026-03-04": now.Add(-12 * time.Hour), "2026-03-04T05:06": now.Add(-6*time.Hour - 54*time.Minute),
		"2026-03-04T12:00:00+02:00": now.Add(-2 * time.Hour), "24h": now.Add(-24 * time.Hour),
	} {
		if got, err := moment(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"yesterday", "-2h", "2026-13-01"} {
		if got, err := moment(text, now); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
	s := selected{since: now, until: now.Add(time.Hour)}
	for minutes, want := range map[time.Duration]bool{-1: false, 0: true, 59: true, 60: false} {
		if s.within(now.Add(minutes*time.Minute)) != want {
			t.Errorf("%d minutes after the beginning: %v", minutes, !want)
		}
	}
}
