package wirejson

import (
	"bytes"
	"fmt"
	"iter"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/edumatrix/interlinked/proto/refusal"
)

// Into is the name and the destination of a field that Object decodes. The functions Text, Texts, Bool, Integer and Raw
// create an Into.
type Into struct {
	name  string
	text  *string
	texts *[]string
	bool  *bool
	raw   *[]byte
	whole *int64
}

// Text accepts a text.
func Text(name string, into *string) Into { return Into{name: name, text: into} }

// Texts accepts a list of texts.
func Texts(name string, into *[]string) Into { return Into{name: name, texts: into} }

// Bool accepts true or false.
func Bool(name string, into *bool) Into { return Into{name: name, bool: into} }

// Integer accepts a whole number.
func Integer(name string, into *int64) Into { return Into{name: name, whole: into} }

// Raw accepts any value and stores its encoded form, which shares the memory of the data. Null counts as unset.
func Raw(name string, into *[]byte) Into { return Into{name: name, raw: into} }

// Object decodes one JSON object into up to 16 fields that do not belong to a message. It is as strict as Unmarshal: it
// accepts no unknown field, no field that occurs twice, and no value of another type. Null means that a field is not
// set. Unlike Unmarshal, Object accepts a text with U+0000.
//
// The errors are refusals, like those of Unmarshal. If the code is "invalid_field", all valid fields were decoded
// nevertheless, so that the caller can answer with the id of the request. The exception is a field name that contains
// half of a surrogate pair, which ends the decoding.
func Object(data []byte, fields ...Into) error {
	if !utf8.Valid(data) {
		return refusal.New(refusal.Malformed, "the data is not UTF-8")
	}
	d := decoder{scanner: scanner{data: data}}
	if d.next() != '{' {
		if kind := d.kind(); kind != "" {
			return refusal.New(refusal.Malformed, "has to be a JSON object, not %s", kind)
		}
		return refused(d.unexpected())
	}
	d.at++
	var seen [16]bool
	var first error // the error of the first invalid field
	for begin := true; ; begin = false {
		more, err := d.more(begin, '}')
		if err != nil {
			return refused(err)
		}
		if !more {
			break
		}
		name, err := d.text()
		if err == nil {
			err = d.take(':')
		}
		if err != nil {
			return refused(err)
		}
		i := named(fields, name)
		switch {
		case i < 0:
			err = invalid("there is no field %s, only %s", quotedAlways(string(name)), names(fields))
		case seen[i]:
			err = in(fields[i].name, invalid("is there twice"))
		default:
			seen[i] = true
			from := d.at
			if err = d.into(fields[i]); err != nil {
				d.at, err = from, in(fields[i].name, err)
			}
		}
		if err != nil {
			if first == nil {
				first = err
			}
			if err := d.skip(0); err != nil {
				return refused(err)
			}
		}
	}
	if d.next() != 0 || d.at < len(d.data) {
		return refusal.New(refusal.Malformed, "more than one JSON value")
	}
	if first != nil {
		return refusedField(first)
	}
	return nil
}

func named(fields []Into, name []byte) int {
	for i := range fields {
		if fields[i].name == string(name) {
			return i
		}
	}
	return -1
}

func names(fields []Into) string {
	all := make([]string, len(fields))
	for i, f := range fields {
		all[i] = f.name
	}
	return strings.Join(all, ", ")
}

func quotedAlways(name string) string { return fmt.Sprintf("%q", clipped(name)) }

// refusedField returns the refusal for a problem. If a problem with the code "invalid_field" has no path, the refusal
// contains only the problem's text, which names the field.
func refusedField(err error) error {
	if p, ok := err.(*problem); ok && p.code == refusal.InvalidField && p.path == "" {
		return refusal.New(p.code, "%s", p.text)
	}
	return refused(err)
}

// into decodes one value into its destination.
func (d *decoder) into(f Into) error {
	if d.next() == 'n' {
		return d.word("null")
	}
	switch {
	case f.text != nil:
		s, err := d.plainText()
		*f.text = s
		return err
	case f.bool != nil:
		switch d.next() {
		case 't':
			*f.bool = true
			return d.word("true")
		case 'f':
			*f.bool = false
			return d.word("false")
		}
		return d.wants('t', "true or false")
	case f.texts != nil:
		return d.textList(f.texts)
	case f.whole != nil:
		v, err := d.number64()
		*f.whole = v
		return err
	}
	from := d.at
	if err := d.skip(0); err != nil {
		return err
	}
	*f.raw = d.data[from:d.at:d.at]
	return nil
}

// number64 reads a whole number.
func (d *decoder) number64() (int64, error) {
	if c := d.next(); c != '-' && c-'0' > 9 {
		return 0, d.wants('0', "a number")
	}
	n, err := d.number()
	if err != nil {
		return 0, err
	}
	return integer(n, math.MinInt64, math.MaxInt64)
}

func (d *decoder) plainText() (string, error) {
	s, err := d.quotedText("a text")
	if err != nil {
		return "", err
	}
	return string(s), nil
}

func (d *decoder) textList(into *[]string) error {
	if err := d.wants('[', "a list of texts"); err != nil {
		return err
	}
	d.at++
	for i := 0; ; i++ {
		more, err := d.more(i == 0, ']')
		if !more || err != nil {
			return err
		}
		s, err := d.plainText()
		if err != nil {
			return inList(i, err)
		}
		*into = append(*into, s)
	}
}

// skip reads a value without decoding it.
func (d *decoder) skip(depth int) error {
	if depth > 2*maxNesting {
		return malformed("it is nested deeper than %d", 2*maxNesting)
	}
	switch c := d.next(); {
	case c == '"':
		return d.skipText()
	case c == '-' || c-'0' <= 9:
		_, err := d.number()
		return err
	case c == 't':
		return d.word("true")
	case c == 'f':
		return d.word("false")
	case c == 'n':
		return d.word("null")
	case c == '[':
		d.at++
		for first := true; ; first = false {
			more, err := d.more(first, ']')
			if !more || err != nil {
				return err
			}
			if err := d.skip(depth + 1); err != nil {
				return err
			}
		}
	case c == '{':
		d.at++
		for first := true; ; first = false {
			more, err := d.more(first, '}')
			if !more || err != nil {
				return err
			}
			if err := d.skipText(); err != nil {
				return err
			}
			if err := d.take(':'); err != nil {
				return err
			}
			if err := d.skip(depth + 1); err != nil {
				return err
			}
		}
	}
	return d.unexpected()
}

// skipText reads a text without decoding its escapes.
func (d *decoder) skipText() error {
	if err := d.take('"'); err != nil {
		return err
	}
	for ; d.at < len(d.data); d.at++ {
		switch c := d.data[d.at]; {
		case c == '"':
			d.at++
			return nil
		case c == '\\':
			if err := d.skipEscape(); err != nil {
				return err
			}
		case c < ' ':
			return d.raw()
		}
	}
	d.at = len(d.data)
	return d.unexpected()
}

// skipEscape reads an escape from its backslash to its last byte.
func (d *decoder) skipEscape() error {
	if d.at++; d.at >= len(d.data) {
		return d.unexpected()
	}
	switch d.data[d.at] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return nil
	case 'u':
		_, err := d.hex()
		d.at--
		return err
	}
	return d.unexpected()
}

// Values splits a text into JSON values, each of which begins on a line of its own. If a part is not a value, or
// anything follows it on the same line, Values returns the text from that part on as one value; decoding it fails. An
// empty text is returned as one empty value.
func Values(text []byte) iter.Seq[[]byte] {
	const space = " \t\r\n"
	return func(yield func([]byte) bool) {
		for first := true; first || len(text) > 0; first = false {
			d := decoder{scanner: scanner{data: text}}
			if bytes.IndexByte(text, '\n') < 0 || d.skip(0) != nil {
				yield(text)
				return
			}
			rest := bytes.TrimLeft(text[d.at:], space[:3])
			if len(rest) > 0 && rest[0] != '\n' {
				yield(text)
				return
			}
			if !yield(text[:d.at:d.at]) {
				return
			}
			text = bytes.TrimLeft(rest, space)
		}
	}
}
