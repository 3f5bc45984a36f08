package hub

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
)

// shown returns the frame that clients get at the time in the parameter now. The frame of an expired event has no
// personal fields, as in the owner's answers to queries. It is still sent, so that no version is missing.
func (e *Event) shown(v variant, now time.Time) []byte {
	if e.Expires.IsZero() || e.Expires.After(now) || e.Redacted {
		return e.frame(v)
	}
	text, _ := e.afterExpiry().Frame(v)
	return text
}

// afterExpiry returns the event in the form that clients get once it has expired. The form is built once.
func (e *Event) afterExpiry() *Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.hidden == nil {
		e.hidden, _ = e.withoutPersonal()
	}
	return e.hidden
}

// redacted returns the event without its personal fields, or the event itself if it has none. Clients get this form
// once a later event has redacted the event.
func (e *Event) redacted() *Event {
	if e.Redacted {
		return e
	}
	if public, personal := e.withoutPersonal(); personal {
		return public
	}
	return e
}

// withoutPersonal returns the event without its personal fields, and whether it had any. If the body cannot be decoded,
// or the catalog does not contain the event's type, any field may be personal. Then the returned event has an empty
// body.
func (e *Event) withoutPersonal() (public *Event, personal bool) {
	copied := e.Event
	copied.Redacted, copied.Body = true, nil
	if e.declared == nil {
		return NewEvent(copied, nil), true
	}
	body := e.declared.Type.New().Interface()
	if proto.Unmarshal(e.Body, body) != nil {
		return NewEvent(copied, e.declared), true
	}
	kept, removed := e.declared.Split(body)
	copied.Body, _ = proto.Marshal(kept)
	return NewEvent(copied, e.declared), removed != nil
}

// redact goes through a list of events. If a later event of the list redacts an event, redact replaces the redacted
// event with a copy without the personal fields. It changes the list itself, and returns it.
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
