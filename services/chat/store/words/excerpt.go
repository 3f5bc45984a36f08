package words

import (
	"cmp"
	"slices"
	"strings"
	"unicode/utf8"
)

// An excerpt has at most maxExcerpt characters, beginning at most maxBefore characters before the first match. It
// leaves out up to maxPart characters to begin and end between words.
const maxExcerpt, maxBefore, maxPart = 200, 60, 20

// Part is a part of an excerpt.
type Part struct {
	Text  string
	Match bool
}

// Excerpt returns the part of a text with the first match, divided into parts that match and parts that do not. The
// matches are those that Find returns for the text.
func Excerpt(text string, matches []Span) (parts []Part) {
	if len(matches) == 0 {
		return nil
	}
	start := back(text, matches[0].Start, maxBefore)
	end := forward(text, start, maxExcerpt)
	if start > 0 {
		start = min(afterSpace(text, start), matches[0].Start)
	}
	if end < len(text) {
		end = max(beforeSpace(text, end), min(end, matches[0].End))
	}
	add := func(from, to int, match bool) {
		if from < to {
			parts = append(parts, Part{text[from:to], match})
		}
	}
	if start > 0 {
		parts = append(parts, Part{Text: "…"})
	}
	at := start
	for _, m := range matches {
		from, to := min(max(m.Start, at), end), min(m.End, end)
		add(at, from, false)
		add(from, to, true)
		at = max(at, from, to)
	}
	add(at, end, false)
	if end < len(text) {
		parts = append(parts, Part{Text: "…"})
	}
	return parts
}

// back returns the place n characters before another place in a text, or the beginning of the text.
func back(text string, at, n int) int {
	for ; n > 0 && at > 0; n-- {
		_, size := utf8.DecodeLastRuneInString(text[:at])
		at -= size
	}
	return at
}

// forward returns the place n characters after another place in a text, or the end of the text.
func forward(text string, at, n int) int {
	for ; n > 0 && at < len(text); n-- {
		_, size := utf8.DecodeRuneInString(text[at:])
		at += size
	}
	return at
}

// afterSpace returns the place after the next space of a text, or the given place if no space is near.
func afterSpace(text string, at int) int {
	near := text[at:forward(text, at, maxPart)]
	if i := strings.IndexAny(near, " \n\t"); i >= 0 {
		return at + i + 1
	}
	return at
}

// beforeSpace returns the place of the previous space of a text, or the given place if no space is near.
func beforeSpace(text string, at int) int {
	begin := back(text, at, maxPart)
	if i := strings.LastIndexAny(text[begin:at], " \n\t"); i >= 0 {
		return begin + i
	}
	return at
}

// joined returns spans in their order, and joins those that overlap or adjoin each other.
func joined(all []Span) (merged []Span) {
	slices.SortFunc(all, func(a, b Span) int { return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.End, b.End)) })
	for _, s := range all {
		if last := len(merged) - 1; last >= 0 && s.Start <= merged[last].End {
			merged[last].End = max(merged[last].End, s.End)
			continue
		}
		merged = append(merged, s)
	}
	return merged
}
