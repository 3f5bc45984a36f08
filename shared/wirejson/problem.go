package wirejson

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/edumatrix/interlinked/proto/refusal"
)

// maxQuoted is the maximum number of bytes of a client's invalid name or value that an error quotes.
const maxQuoted = 64

// problem is an error in the data of a client, such as an invalid field. The functions that decode the messages, lists
// and maps around the field each add a part of the path when they return the problem.
type problem struct {
	code string
	path string
	text string
}

func (p *problem) Error() string { return p.path + " " + p.text }

func malformed(format string, args ...any) error {
	return &problem{code: refusal.Malformed, text: fmt.Sprintf(format, args...)}
}

func invalid(format string, args ...any) error {
	return &problem{code: refusal.InvalidField, text: fmt.Sprintf(format, args...)}
}

// in adds the name of a field, or an index, at the front of a problem's path.
func in(name string, err error) error {
	if p := (*problem)(nil); errors.As(err, &p) {
		if p.path != "" && p.path[0] != '[' {
			name += "."
		}
		p.path = name + p.path
	}
	return err
}

func inList(i int, err error) error { return in("["+strconv.Itoa(i)+"]", err) }

// refused returns the refusal that clients get for a problem.
func refused(err error) error {
	p := (*problem)(nil)
	if !errors.As(err, &p) {
		return err
	}
	if p.code == refusal.Malformed {
		return refusal.New(p.code, "the data is not a JSON object: %s", p.text)
	}
	if p.path == "" {
		return refusal.New(p.code, "the data %s", p.text)
	}
	return refusal.NewField(p.path, "%s", p.text)
}

// quoted returns a name that a client has chosen, cut off after maxQuoted bytes. The name is put in quotes unless it
// looks like the name of a field.
func quoted(name string) string {
	plain := name != "" && strings.IndexFunc(name, func(r rune) bool {
		return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) < 0
	if name = clipped(name); plain {
		return name
	}
	return strconv.Quote(name)
}

func clipped(s string) string {
	if len(s) <= maxQuoted {
		return s
	}
	return strings.ToValidUTF8(s[:maxQuoted], "") + "…"
}

// suggest returns a hint for an unknown name: the field with the nearest name, or all fields if none is near.
func suggest(fields protoreflect.FieldDescriptors, name string) string {
	if fields.Len() == 0 {
		return ": there are no fields"
	}
	best, distance := "", len(name)/2+1
	all := make([]string, fields.Len())
	for i := range fields.Len() {
		all[i] = string(fields.Get(i).Name())
		if len(name) > maxQuoted {
			continue
		}
		if d := edits(strings.ToLower(name), all[i]); d < distance {
			best, distance = all[i], d
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return "; known fields: " + strings.Join(all, ", ")
}

// edits returns the Levenshtein distance of two names without their underscores.
func edits(a, b string) int {
	a, b = strings.ReplaceAll(a, "_", ""), strings.ReplaceAll(b, "_", "")
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
