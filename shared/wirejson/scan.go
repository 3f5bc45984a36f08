package wirejson

import (
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// scanner reads JSON (RFC 8259) value by value. It does not check whether the data is UTF-8.
type scanner struct {
	data []byte
	at   int
}

// next returns the first byte of the next token; 0 at the end.
func (s *scanner) next() byte {
	for s.at < len(s.data) {
		switch c := s.data[s.at]; c {
		case ' ', '\t', '\n', '\r':
			s.at++
		default:
			return c
		}
	}
	return 0
}

// unexpected returns the error for an unexpected token.
func (s *scanner) unexpected() error {
	if s.next() == 0 && s.at >= len(s.data) {
		return malformed("it ends too early")
	}
	r, _ := utf8.DecodeRune(s.data[s.at:])
	return malformed("%q is out of place at byte %d", r, s.at)
}

// take reads one required byte.
func (s *scanner) take(c byte) error {
	if s.next() != c {
		return s.unexpected()
	}
	s.at++
	return nil
}

// more moves to the next member of an object or list, or past the end of the object or list. It reports whether there
// is another member.
func (s *scanner) more(first bool, end byte) (bool, error) {
	c := s.next()
	if c == end {
		s.at++
		return false, nil
	}
	if first {
		return true, nil
	}
	if c != ',' {
		return false, s.unexpected()
	}
	s.at++
	if s.next() == end {
		return false, s.unexpected()
	}
	return true, nil
}

// word reads true, false or null.
func (s *scanner) word(w string) error {
	if len(s.data)-s.at < len(w) || string(s.data[s.at:s.at+len(w)]) != w {
		return s.unexpected()
	}
	s.at += len(w)
	return nil
}

// number reads a number and returns its text.
func (s *scanner) number() ([]byte, error) {
	from := s.at
	digits := func() bool {
		begin := s.at
		for s.at < len(s.data) && s.data[s.at]-'0' <= 9 {
			s.at++
		}
		return s.at > begin
	}
	skip := func(one, other byte) bool {
		found := s.at < len(s.data) && (s.data[s.at] == one || s.data[s.at] == other)
		if found {
			s.at++
		}
		return found
	}
	skip('-', '-')
	if !skip('0', '0') && !digits() {
		return nil, s.unexpected()
	}
	if skip('.', '.') && !digits() {
		return nil, s.unexpected()
	}
	if skip('e', 'E') {
		if skip('+', '-'); !digits() {
			return nil, s.unexpected()
		}
	}
	return s.data[from:s.at], nil
}

// text reads a text that begins at the next token. The result is a part of the data, or a copy if the text has escapes.
func (s *scanner) text() ([]byte, error) {
	if err := s.take('"'); err != nil {
		return nil, err
	}
	for i := s.at; i < len(s.data); i++ {
		switch c := s.data[i]; {
		case c == '"':
			t := s.data[s.at:i]
			s.at = i + 1
			return t, nil
		case c == '\\':
			return s.escaped(i)
		case c < ' ':
			s.at = i
			return nil, s.raw()
		}
	}
	s.at = len(s.data)
	return nil, s.unexpected()
}

func (s *scanner) raw() error {
	return malformed("the control character U+%04X stands in a text at byte %d, and has to be escaped", s.data[s.at], s.at)
}

// escaped reads the rest of a text from its first backslash on, and returns the whole text.
func (s *scanner) escaped(first int) ([]byte, error) {
	t := append(make([]byte, 0, 2*(first-s.at)+64), s.data[s.at:first]...)
	for s.at = first; s.at < len(s.data); {
		c := s.data[s.at]
		switch {
		case c == '"':
			s.at++
			return t, nil
		case c < ' ':
			return nil, s.raw()
		case c != '\\':
			t = append(t, c)
			s.at++
			continue
		}
		if s.at++; s.at >= len(s.data) {
			break
		}
		switch c = s.data[s.at]; c {
		case '"', '\\', '/':
			t = append(t, c)
		case 'b':
			t = append(t, '\b')
		case 'f':
			t = append(t, '\f')
		case 'n':
			t = append(t, '\n')
		case 'r':
			t = append(t, '\r')
		case 't':
			t = append(t, '\t')
		case 'u':
			r, err := s.rune()
			if err != nil {
				return nil, err
			}
			t = utf8.AppendRune(t, r)
			continue
		default:
			return nil, s.unexpected()
		}
		s.at++
	}
	return nil, s.unexpected()
}

// rune reads the character of an escape from its u onwards. A character that is written as a surrogate pair has two
// escapes, and rune reads both.
func (s *scanner) rune() (rune, error) {
	high, err := s.hex()
	if err != nil || !utf16.IsSurrogate(high) {
		return high, err
	}
	if s.at+1 < len(s.data) && s.data[s.at] == '\\' && s.data[s.at+1] == 'u' {
		s.at++
		low, err := s.hex()
		if err != nil {
			return 0, err
		}
		if r := utf16.DecodeRune(high, low); r != utf8.RuneError {
			return r, nil
		}
	}
	return 0, invalid("holds half of a surrogate pair, which is not text")
}

func (s *scanner) hex() (rune, error) {
	if len(s.data)-s.at < 5 {
		s.at = len(s.data)
		return 0, s.unexpected()
	}
	n, err := strconv.ParseUint(string(s.data[s.at+1:s.at+5]), 16, 16)
	if err != nil {
		return 0, malformed("\\%s is not an escape", s.data[s.at:s.at+5])
	}
	s.at += 5
	return rune(n), nil
}

// kind describes the next token, for the text of an error.
func (s *scanner) kind() string {
	switch c := s.next(); {
	case c == '{':
		return "an object"
	case c == '[':
		return "a list"
	case c == '"':
		return "text"
	case c == '-' || c-'0' <= 9:
		return "a number"
	case c == 't' || c == 'f':
		return "true or false"
	case c == 'n':
		return "null"
	default:
		return ""
	}
}
