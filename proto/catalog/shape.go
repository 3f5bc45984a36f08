package catalog

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	routingv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/routing/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// MaxID is the maximum length of an id, in characters.
const MaxID = 255

// IDForm describes the ids that ValidID accepts, for the texts of errors.
const IDForm = "1 to 255 of A-Z a-z 0-9 . _ @ - | : +"

// ValidID reports whether s has the form of an id. An id consists of 1 to 255 characters. The allowed characters are
// those that common identity providers use for their users (the claim sub of a token), such as "auth0|5f7c",
// "f:uuid:name" or "a+b@x.y". Event headers rely on this form, because they use other characters as separators of ids.
func ValidID(s string) bool {
	if len(s) == 0 || len(s) > MaxID {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("._@-|:+", c) < 0 {
			return false
		}
	}
	return true
}

// CheckStorable returns a refusal if PostgreSQL cannot store a text, because it contains U+0000 or is not UTF-8.
func CheckStorable(field, text string) error {
	switch {
	case strings.ContainsRune(text, 0):
		return refusal.NewField(field, "contains the character U+0000, which cannot be stored")
	case !utf8.ValidString(text):
		return refusal.NewField(field, "is not UTF-8")
	}
	return nil
}

// Check checks the fields of a command as CheckShape does. Fields that occur in the templates of the command's stream,
// subject, member_of and requires must also be ids, except that an optional field of the subject may be absent. The
// error is a refusal.
func (c *Command) Check(m proto.Message) error {
	for _, t := range c.addresses() {
		for _, h := range t.placeholders {
			if h.field == nil || h.field.HasPresence() && !m.ProtoReflect().Has(h.field) {
				continue
			}
			if !ValidID(m.ProtoReflect().Get(h.field).String()) {
				return refusal.NewField(string(h.field.Name()), "has to be an id: %s", IDForm)
			}
		}
	}
	return CheckShape(m)
}

// Check checks the fields of a query as CheckShape does. The error is a refusal.
func (q *Query) Check(m proto.Message) error { return CheckShape(m) }

// CheckShape checks the fields of a message against their declared shapes. Every text must also be storable (see
// CheckStorable), and the texts in a repeated field must not be empty. Fields of nested messages are not checked. The
// error is a refusal.
func CheckShape(m proto.Message) error {
	fields := m.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		shape := shapeOf(f)
		if f.HasPresence() && !m.ProtoReflect().Has(f) && !shape.GetRequired() {
			continue
		}
		if err := checkField(f, m.ProtoReflect().Get(f), shape); err != nil {
			return err
		}
	}
	return nil
}

func shapeOf(f protoreflect.FieldDescriptor) *routingv1.Shape {
	return proto.GetExtension(f.Options(), routingv1.E_Shape).(*routingv1.Shape)
}

// checkShapes checks the shapes that the fields of a message declare. It returns an error for each option that does not
// apply to the type of its field, because CheckShape would ignore the option. It does not check the fields of nested
// messages, because CheckShape ignores their shapes.
func checkShapes(m protoreflect.MessageDescriptor) (problems []error) {
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		wrong := func(option string) {
			problems = append(problems, fmt.Errorf("%s: the option %s does not apply to a field of this type", f.FullName(), option))
		}
		s := shapeOf(f)
		if s == nil {
			continue
		}
		if f.Kind() != protoreflect.StringKind && (s.GetId() || s.GetMaxChars() > 0) {
			wrong("id or max_chars")
		}
		if f.Kind() != protoreflect.StringKind && !f.IsList() && s.GetRequired() {
			wrong("required")
		}
		if !f.IsList() && s.GetMaxItems() > 0 {
			wrong("max_items")
		}
		if _, ok := wholeNumber(f.Default()); (!ok || f.IsList()) && (s.Min != nil || s.Max != nil) {
			wrong("min or max")
		}
	}
	return problems
}

func checkField(f protoreflect.FieldDescriptor, v protoreflect.Value, s *routingv1.Shape) error {
	name := string(f.Name())
	if f.IsList() {
		if n := v.List().Len(); s.GetMaxItems() > 0 && n > int(s.GetMaxItems()) {
			return refusal.NewField(name, "has %d values, but at most %d are allowed", n, s.GetMaxItems())
		} else if n == 0 && s.GetRequired() {
			return refusal.NewField(name, "is missing")
		}
		for i := range v.List().Len() {
			if f.Kind() != protoreflect.StringKind {
				break
			}
			if err := checkText(name, v.List().Get(i).String(), s, true); err != nil {
				return err
			}
		}
		return nil
	}
	if f.Kind() == protoreflect.StringKind {
		return checkText(name, v.String(), s, s.GetRequired())
	}
	if n, ok := wholeNumber(v); ok && s != nil {
		return checkNumber(name, n, s)
	}
	return nil
}

// wholeNumber returns the value of a field of type int32, int64 or uint32, and false for the other types.
func wholeNumber(v protoreflect.Value) (int64, bool) {
	switch n := v.Interface().(type) {
	case int32:
		return int64(n), true
	case int64:
		return n, true
	case uint32:
		return int64(n), true
	}
	return 0, false
}

func checkNumber(name string, n int64, s *routingv1.Shape) error {
	switch low, high := s.Min != nil && n < s.GetMin(), s.Max != nil && n > s.GetMax(); {
	case !low && !high:
		return nil
	case s.Max == nil:
		return refusal.NewField(name, "has to be %d or more", s.GetMin())
	case s.Min == nil:
		return refusal.NewField(name, "has to be %d or less", s.GetMax())
	}
	return refusal.NewField(name, "has to be from %d to %d", s.GetMin(), s.GetMax())
}

func checkText(name, text string, s *routingv1.Shape, required bool) error {
	if err := CheckStorable(name, text); err != nil {
		return err
	}
	switch {
	case text == "" && required:
		return refusal.NewField(name, "is missing")
	case required && !visible(text):
		return refusal.NewField(name, "is empty: it has no visible character")
	case text != "" && s.GetId() && !ValidID(text):
		return refusal.NewField(name, "has to be an id: %s", IDForm)
	case s.GetMaxChars() > 0 && utf8.RuneCountInString(text) > int(s.GetMaxChars()):
		return refusal.NewField(name, "has %d characters, but at most %d are allowed", utf8.RuneCountInString(text),
			s.GetMaxChars())
	}
	return nil
}

// visible reports whether a text has a visible character. Spaces, control and format characters (such as U+200B, zero
// width space), combining marks alone, and letters and symbols without a glyph are not visible.
func visible(text string) bool {
	return strings.ContainsFunc(text, func(r rune) bool {
		if unicode.IsSpace(r) || unicode.In(r, unicode.C, unicode.Z, unicode.M) {
			return false
		}
		switch r {
		case 0x115F, 0x1160, 0x3164, 0xFFA0, // Hangul fillers
			0x2800,  // Braille pattern blank
			0x1D159, // musical symbol null notehead
			0xFFFC:  // object replacement character
			return false
		}
		return true
	})
}
