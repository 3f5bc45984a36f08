// Package page divides the rows of a list into pages. A request has a limit and the cursor that the page before
// returned; a response has the cursor of the next page, or none on the last page.
package page

import (
	"encoding/base64"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// Limits bound the number of rows of a page.
type Limits struct {
	Default int // of a request without a limit
	Max     int
}

// Limit returns the number of rows that a request asks for; nil: Default. It refuses numbers below 1 or above Max
// (refusal.InvalidField). Field is the name of the request's field, for the refusal's text.
func (l Limits) Limit(field string, asked *int32) (int, error) {
	switch {
	case asked == nil:
		return l.Default, nil
	case *asked < 1 || int(*asked) > l.Max:
		return 0, refusal.New(refusal.InvalidField, "%s is from 1 to %d", field, l.Max)
	}
	return int(*asked), nil
}

// Read returns the number of rows that a request asks for in its field limit, and decodes the cursor in its field after
// (see Limit and ReadCursor).
func (l Limits) Read(limit *int32, after string, place ...any) (int, error) {
	rows, err := l.Limit("limit", limit)
	if err != nil {
		return 0, err
	}
	return rows, ReadCursor("after", after, place...)
}

// Cut cuts limit+1 rows, or fewer, to a page of limit. If there are more, next is the place of the page's last row, for
// the cursor of the next page. Place returns the place of a row.
func Cut[T, P any](rows []T, limit int, place func(row int) P) (page []T, next P) {
	if len(rows) > limit {
		return rows[:limit], place(limit - 1)
	}
	return rows, next
}

// Cursor encodes the place of the last row of a page: texts without newlines, and numbers (int64, int32) that are not
// negative. It returns "" if all of them are zero, as they are in front of the first row and behind the last page.
func Cursor(place ...any) string {
	texts, zero := make([]string, len(place)), true
	for i, v := range place {
		texts[i], zero = fmt.Sprint(v), zero && reflect.ValueOf(v).IsZero()
	}
	if zero {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString([]byte(strings.Join(texts, "\n")))
}

// ReadCursor decodes a cursor into pointers to values of the same types and order as Cursor was called with. The empty
// cursor leaves them as they are. A cursor that does not have such values is refused (refusal.InvalidField). Field is the
// name of the request's field, for the refusal's text.
func ReadCursor(field, cursor string, place ...any) error {
	if cursor == "" {
		return nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	texts := strings.Split(string(raw), "\n")
	valid := err == nil && len(texts) == len(place) && catalog.CheckStorable(field, string(raw)) == nil
	for i := 0; valid && i < len(texts); i++ {
		valid = read(texts[i], place[i])
	}
	if !valid {
		return refusal.New(refusal.InvalidField, "invalid cursor in %s; use the one that the previous page returned", field)
	}
	return nil
}

// read decodes a value, and reports whether it is one of that type.
func read(text string, into any) bool {
	var n int64
	var err error
	switch into := into.(type) {
	case *string:
		*into = text
	case *int64:
		n, err = strconv.ParseInt(text, 10, 64)
		*into = n
	case *int32:
		n, err = strconv.ParseInt(text, 10, 32)
		*into = int32(n)
	default:
		panic(fmt.Sprintf("page: a cursor has no values of type %T", into))
	}
	return err == nil && n >= 0
}
