package relay

import (
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
)

// Events are committed, and a relay publishes them, announces its position, and crashes, all in any order. A reader
// that stores one position for each partition must see every event once, and no gap.
func TestSequence_AReaderSeesNoGap(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		places := []topicPartition{{"a", 0}, {"a", 1}, {"b", 0}}
		var log []topicPartition // log[i] is the partition of the event at position i+1
		records := map[topicPartition][]envelope.Event{}
		var saved, s sequence
		now := time.Unix(0, 0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 800).Draw(t, "ms")) * time.Millisecond)
			switch rapid.SampledFrom([]string{"append", "append", "publish", "crash", "tell"}).Draw(t, "step") {
			case "append":
				log = append(log, rapid.SampledFrom(places).Draw(t, "place"))
			case "publish":
				until := min(int(s.Position)+rapid.IntRange(1, 5).Draw(t, "batch"), len(log))
				for position := s.Position + 1; position <= catalog.Position(until); position++ {
					p := log[position-1]
					e := envelope.Event{Type: "event", Position: position, Before: s.append(p, position, now)}
					records[p] = append(records[p], e)
				}
				s.Position = max(s.Position, catalog.Position(until))
				if rapid.Bool().Draw(t, "saved") {
					saved = sequence{Position: s.Position, Last: map[string]map[int32]catalog.Position{}}
					for topic, last := range s.Last {
						saved.Last[topic] = maps.Clone(last)
					}
				}
			case "crash":
				s = sequence{Position: saved.Position, Last: map[string]map[int32]catalog.Position{}}
				for topic, last := range saved.Last {
					s.Last[topic] = maps.Clone(last)
				}
			case "tell":
				for _, p := range places {
					if !s.due(p, time.Second, 30*time.Second).After(now) {
						position, before := s.announce(p, now)
						records[p] = append(records[p], envelope.Position("chat", position, before))
					}
				}
			}
		}
		for _, p := range places {
			inLog := map[catalog.Position]bool{}
			for i, of := range log {
				if of == p && catalog.Position(i+1) <= s.Position {
					inLog[catalog.Position(i+1)] = true
				}
			}
			r := &reader{}
			for _, e := range records[p] {
				// Before a crash, the relay may have published events above the position from which it continues.
				if e.Position > s.Position && !e.IsPosition() {
					inLog[e.Position] = true
				}
			}
			for _, e := range records[p] {
				if err := r.take(e, inLog); err != nil {
					t.Fatal(err)
				}
			}
			if want := slices.Sorted(maps.Keys(inLog)); r.gaps > 0 || !slices.Equal(r.seen, want) {
				t.Fatalf("%v: saw %v with %d gaps, want %v", p, r.seen, r.gaps, want)
			}
		}
	})
}
