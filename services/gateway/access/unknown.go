package access

import (
	"github.com/edumatrix/interlinked/proto/catalog"
	"github.com/edumatrix/interlinked/proto/refusal"
)

// Unknown refuses a name that clients may not use. A name that exists but is not public gets the same text as one that
// does not exist, so that clients cannot find out which internal names exist.
func Unknown(c *catalog.Catalog, name string) *refusal.Error {
	if near := c.Nearest(name); near != "" {
		return refusal.New(refusal.UnknownType, "there is no %q; did you mean %q?", name, near)
	}
	return refusal.New(refusal.UnknownType, "there is no %q", Clip(name))
}

// Public returns the public command or query with the given name. Both are nil if there is none.
func Public(c *catalog.Catalog, name string) (*catalog.Command, *catalog.Query) {
	if command, ok := c.Command(name); ok && command.Public {
		return command, nil
	}
	if query, ok := c.Query(name); ok && query.Public {
		return nil, query
	}
	return nil, nil
}
