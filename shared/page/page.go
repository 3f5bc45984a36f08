// Package page divides the rows of a list into pages. A request has a limit and the cursor that the previous page
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
	Default int // number for a request without a limit
	Max     int
}

// Limit returns the number of rows that was requested, or Default if the parameter asked is nil. It refuses numbers
// below 1 or above Max (refusal.InvalidField). The parameter field is the name of the request's field, for the refusal.
func (l Limits) Limit(field string, asked *int32) (int, error) {
	switch {
	case asked == nil:
		return l.Default, nil
	case *asked < 1 || int(*asked) > l.Max:
		return 0, refusal.NewField(field, "has to be from 1 to %d", l.Max)
	}
	return int(*asked), nil
}

// Read returns the number of rows for the value of a request's field "limit", and decodes the cursor in its field
// "after" (see Limit and ReadCursor).
func (l Limits) Read(limit *int32, after string, place ...any) (int, error) {
	rows, err := l.Limit("limit", limit)
	if err != nil {
		return 0, err
	}
	return rows, ReadCursor("after", after, place...)
}

// Cut returns a page, which consists of the first rows in the parameter rows, up to limit rows. The caller has to read
// limit+1 rows, so that an additional row shows that there is a next page. If there is a next page, the result next is
// the place of the page's last row, for the cursor of the next page. On the last page, the result next is zero. A place
// consists of the values by which the rows are ordered. The function place returns the place of the row with the given
// index.
func Cut[T, P any](rows []T, limit int, place func(row int) P) (page []T, next P) {
	if len(rows) > limit {
		return rows[:limit], place(limit - 1)
	}
	return rows, next
}

// Cursor encodes the place of the last row of a page. The values of a place are texts without newlines, and numbers
// (int64, int32) that are not negative. If all values are zero, Cursor returns "". In a request, "" stands for the
// place before the first row, and in a response for the end of the list.
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

// ReadCursor decodes a cursor into variables; the elements of the parameter place are pointers to them. The types and
// the order of the variables must be those of the values with which Cursor was called. The empty cursor does not change
// the variables. A cursor that does not contain such values is refused (refusal.InvalidField). The parameter field is
// the name of the request's field, for the refusal.
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
		return refusal.NewField(field, "is not a valid cursor; use the one that the previous page returned")
	}
	return nil
}

// read decodes a text into a variable, to which the parameter into is a pointer. It reports whether the text is a valid
// value for this variable.
func read(text string, into any) bool {
	value := reflect.ValueOf(into).Elem()
	switch value.Kind() {
	case reflect.String:
		value.SetString(text)
		return true
	case reflect.Int64, reflect.Int32:
		n, err := strconv.ParseInt(text, 10, value.Type().Bits())
		value.SetInt(n)
		return err == nil && n >= 0
	default:
		panic(fmt.Sprintf("page: a cursor has no values of type %T", into))
	}
}
