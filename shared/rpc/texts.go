package rpc

import (
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// checkTexts returns a refusal that names the field if a request contains a text that PostgreSQL cannot store. No
// owner's log contains such a text, and an SQL statement with it would fail.
func checkTexts(m protoreflect.Message, path string) (err error) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := path + string(f.Name())
		switch {
		case f.IsMap():
			v.Map().Range(func(key protoreflect.MapKey, v protoreflect.Value) bool {
				if f.MapKey().Kind() == protoreflect.StringKind {
					err = catalog.CheckStorable(name, key.String())
				}
				if err == nil {
					err = checkValue(f.MapValue(), v, name)
				}
				return err == nil
			})
		case f.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = checkValue(f, v.List().Get(i), name)
			}
		default:
			err = checkValue(f, v, name)
		}
		return err == nil
	})
	return err
}

func checkValue(f protoreflect.FieldDescriptor, v protoreflect.Value, name string) error {
	switch f.Kind() {
	case protoreflect.StringKind:
		return catalog.CheckStorable(name, v.String())
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return checkTexts(v.Message(), name+".")
	}
	return nil
}
