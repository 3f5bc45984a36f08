package hub

import (
	"slices"

	"google.golang.org/protobuf/proto"
)

// afterExpiry returns the event in the form that clients get once it has expired. The form is built once.
func (e *Event) afterExpiry() *Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.hidden == nil {
		e.hidden, _ = e.withoutPersonal()
	}
	return e.hidden
}

// redacted returns the event without its personal fields. Clients get this form once a later event has redacted the
// event. An event whose type is not in the catalog is returned unchanged.
func (e *Event) redacted() *Event {
	if e.Redacted || e.declared == nil {
		return e
	}
	if public, personal := e.withoutPersonal(); personal {
		return public
	}
	return e
}

// withoutPersonal returns the event without its personal fields, and whether it had any. The field declared must not be
// nil. If the body cannot be decoded, the returned event has an empty body.
func (e *Event) withoutPersonal() (public *Event, personal bool) {
	copied := e.Event
	copied.Redacted, copied.Body = true, nil
	body := e.declared.Type.New().Interface()
	if proto.Unmarshal(e.Body, body) == nil {
		kept, removed := e.declared.Split(body)
		copied.Body, _ = proto.Marshal(kept)
		personal = removed != nil
	}
	return NewEvent(copied, e.declared), personal
}

// redact replaces each event of a list that is redacted by a later event of the list with a copy without the personal
// fields. It changes the list itself, and returns it.
func redact(list []*Event) []*Event {
	if !slices.ContainsFunc(list, func(e *Event) bool { return e.declared != nil && e.declared.Redacts }) {
		return list
	}
	type subject struct{ stream, subject string }
	emptied := map[subject]bool{}
	for i := len(list) - 1; i >= 0; i-- {
		e := list[i]
		if emptied[subject{e.Stream, e.Subject}] {
			list[i] = e.redacted()
		}
		if e.declared != nil && e.declared.Redacts {
			emptied[subject{e.Stream, e.Subject}] = true
		}
	}
	return list
}
