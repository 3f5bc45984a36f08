package edumatrix

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/shared/envelope"
	"github.com/edumatrix/interlinked/shared/wirejson"
)

// Colors of a terminal.
const (
	plain  = ""
	faint  = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

// isTerminal reports whether the output goes to a character device, such as a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// ink reports whether texts are printed in color.
type ink bool

func (t Terminal) ink() ink {
	return ink(isTerminal(t.Out) && t.Getenv("NO_COLOR") == "" && t.Getenv("TERM") != "dumb")
}

func (i ink) paint(colour, text string) string {
	if !i || colour == plain || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// where is the place of an event on a topic.
type where struct {
	topic     string
	partition int32
	offset    int64
}

// shower prints events, one on each line. It is safe for concurrent use.
type shower struct {
	out      io.Writer
	ink      ink
	json     bool
	declared *catalog.Catalog

	mu sync.Mutex
}

// shown is an event in the output of --json.
type shown struct {
	Topic       string           `json:"topic,omitempty"`
	Partition   *int32           `json:"partition,omitempty"`
	Offset      *int64           `json:"offset,omitempty"`
	Owner       string           `json:"owner"`
	Position    catalog.Position `json:"position"`
	Stream      string           `json:"stream,omitempty"`
	Version     catalog.Version  `json:"version,omitempty"`
	ID          string           `json:"id"`
	Type        string           `json:"type"`
	Time        time.Time        `json:"time"`
	Actor       string           `json:"actor,omitempty"`
	Cause       string           `json:"cause,omitempty"`
	Correlation string           `json:"correlation,omitempty"`
	Rooms       []string         `json:"rooms,omitempty"`
	Redacted    bool             `json:"redacted,omitempty"`
	Data        json.RawMessage  `json:"data,omitempty"`
	Problem     string           `json:"problem,omitempty"` // the reason why data is missing
}

// event prints one event. The parameter at is the event's place on a topic, or nil if it was read from the log.
func (s *shower) event(e envelope.Event, at *where) error {
	line := s.line(e, at)
	if s.json {
		return s.object(s.shown(e, at))
	}
	return s.write(line)
}

func (s *shower) shown(e envelope.Event, at *where) shown {
	o := shown{Owner: e.Source, Position: e.Position, Stream: e.Stream, Version: e.Version, ID: e.ID, Type: e.Type,
		Time: e.Time.UTC(), Actor: e.Actor, Cause: e.Cause, Correlation: e.Correlation, Rooms: e.Rooms,
		Redacted: e.Redacted}
	if at != nil {
		o.Topic, o.Partition, o.Offset = at.topic, &at.partition, &at.offset
	}
	if e.IsPosition() {
		return o
	}
	data, err := eventData(s.declared, e)
	if err != nil {
		o.Problem = err.Error()
	} else {
		o.Data = data
	}
	return o
}

func (s *shower) line(e envelope.Event, at *where) string {
	var b strings.Builder
	add := func(colour, text string) {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(s.ink.paint(colour, text))
	}
	add(faint, e.Time.UTC().Format("2006-01-02T15:04:05.000Z"))
	if at != nil {
		add(faint, fmt.Sprintf("%s/%d", at.topic, at.partition))
	}
	if e.IsPosition() {
		add(faint, fmt.Sprintf("%s is complete up to position %d here", printable(e.Source), e.Position))
		return b.String()
	}
	if at != nil {
		add(plain, printable(e.Stream))
	}
	add(yellow, strconv.FormatInt(int64(e.Version), 10))
	add(cyan, printable(e.Type))
	if e.Actor != "" {
		add(green, printable(e.Actor))
	}
	if e.Redacted {
		add(red, "(redacted)")
	}
	if data, err := eventData(s.declared, e); err != nil {
		add(red, "("+printable(err.Error())+")")
	} else {
		add(plain, printable(string(data)))
	}
	return b.String()
}

// object prints a value as one line of JSON.
func (s *shower) object(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.write(string(line))
}

func (s *shower) write(line string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := fmt.Fprintln(s.out, line)
	return err
}

// eventData returns the body of an event as JSON.
func eventData(declared *catalog.Catalog, e envelope.Event) ([]byte, error) {
	m, err := declared.Decode(e.Type, e.Body)
	if err != nil {
		return nil, err
	}
	return wirejson.Marshal(m)
}
