package eventlog

import (
	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// partKey identifies a part of a stream, such as one message of a conversation.
type partKey struct{ stream, subject string }

// partState is the state of a part of a stream. It follows from the newest event about the part.
type partState int

const (
	partMissing partState = iota // there is no event about the part
	partExists
	partDeleted // the newest event about the part redacts it
)

// stateAfter returns the state of the part that an event is about.
func stateAfter(newest *catalog.Event) partState {
	if newest.Redacts {
		return partDeleted
	}
	return partExists
}

// partState returns the state of a part, given the type of the newest event about it. A part whose newest event has a
// type that the catalog does not contain exists, because some event about it does.
func (l *Log) partState(newest string) partState {
	if declared, ok := l.o.Catalog.Event(newest); ok {
		return stateAfter(declared)
	}
	return partExists
}

// partColumns returns parts as two columns.
func partColumns(all map[partKey]bool) (streams, subjects []string) {
	for k := range all {
		streams, subjects = append(streams, k.stream), append(subjects, k.subject)
	}
	return streams, subjects
}

// checkPart refuses a command if the part of another stream that the command requires does not exist.
func (t *trial) checkPart(e *entry) {
	if e.requires.Stream == "" {
		return
	}
	key := partKey{e.requires.Stream, e.requires.Subject}
	state, changed := t.parts[key]
	if !changed {
		state = t.admission.parts[key]
	}
	switch state {
	case partMissing:
		t.refuse(e.index, refusal.New(refusal.NotFound, "there is no such %s in this %s", e.requires.Name,
			catalog.KindOf(e.requires.Stream)))
	case partDeleted:
		t.refuse(e.index, refusal.New(e.requires.DeletedCode, "the %s is deleted", e.requires.Name))
	}
}
