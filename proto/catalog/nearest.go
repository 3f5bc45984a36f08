package catalog

import (
	"maps"
	"slices"
)

// EventNames returns the names of all events, sorted.
func (c *Catalog) EventNames() []string { return slices.Sorted(maps.Keys(c.events)) }

// CommandNames returns the names of all commands, sorted.
func (c *Catalog) CommandNames() []string { return slices.Sorted(maps.Keys(c.commands)) }

// QueryNames returns the names of all queries, sorted.
func (c *Catalog) QueryNames() []string { return slices.Sorted(maps.Keys(c.queries)) }

// SignalNames returns the names of all signals, sorted.
func (c *Catalog) SignalNames() []string { return slices.Sorted(maps.Keys(c.signals)) }

// maxTyped is the maximum length in bytes of a name that Nearest compares. It bounds the time of a comparison, and is
// longer than every declared name.
const maxTyped = 64

// Nearest returns the public command or query with the smallest edit distance to a mistyped name, or "" if no name is
// similar or the mistyped name is longer than maxTyped.
func (c *Catalog) Nearest(name string) string {
	if len(name) > maxTyped {
		return ""
	}
	best, distance := "", len(name)/2+1
	consider := func(known string, public bool) {
		if d := editDistance(name, known); public && d < distance {
			best, distance = known, d
		}
	}
	for _, n := range c.CommandNames() {
		consider(n, c.commands[n].Public)
	}
	for _, n := range c.QueryNames() {
		consider(n, c.queries[n].Public)
	}
	return best
}

func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
