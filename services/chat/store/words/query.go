package words

import (
	"cmp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Query is a parsed search: phrases that a text has to contain, and phrases that it must not contain.
type Query struct{ wanted, excluded []phrase }

// phrase is a sequence of words. A single word is a phrase too.
type phrase []term

// term is a word of a phrase.
type term struct {
	word   string
	offset int  // the distance from the first word of the phrase, in places
	prefix bool // the word may be the beginning of a longer one
}

// Parse parses a search: words, phrases between quotation marks, and either of them behind a hyphen to exclude it. The
// last word may be the beginning of a word, unless a space or a quotation mark follows it.
func Parse(text string) (q Query) {
	for text = strings.TrimLeftFunc(text, unicode.IsSpace); text != ""; text = strings.TrimLeftFunc(text, unicode.IsSpace) {
		rest, exclude := strings.CutPrefix(text, "-")
		var part string
		var quoted bool
		part, text, quoted = next(rest)
		p := newPhrase(part, !quoted && !exclude && text == "")
		switch {
		case len(p) == 0:
		case exclude:
			q.excluded = p.addTo(q.excluded)
		default:
			q.wanted = p.addTo(q.wanted)
		}
	}
	return q
}

// addTo adds a phrase to a list, unless the list contains it already.
func (p phrase) addTo(all []phrase) []phrase {
	if slices.ContainsFunc(all, func(other phrase) bool { return slices.Equal(p, other) }) {
		return all
	}
	return append(all, p)
}

// Phrases returns the number of different words and phrases.
func (q Query) Phrases() int { return len(q.wanted) + len(q.excluded) }

// next returns the word or the quoted phrase at the beginning of a search, and the text that follows it. A phrase
// without a closing quotation mark ends with the text.
func next(text string) (part, rest string, quoted bool) {
	first, size := utf8.DecodeRuneInString(text)
	if isQuote(first) {
		part, rest = text[size:], ""
		if end := strings.IndexFunc(part, isQuote); end >= 0 {
			_, size = utf8.DecodeRuneInString(part[end:])
			part, rest = part[:end], part[end+size:]
		}
		return part, rest, true
	}
	end := strings.IndexFunc(text, func(r rune) bool { return unicode.IsSpace(r) || isQuote(r) })
	if end < 0 {
		return text, "", false
	}
	return text[:end], text[end:], false
}

func isQuote(r rune) bool { return strings.ContainsRune(`"“”„«»`, r) }

// newPhrase returns the words of a part of a search. If the parameter typing is true, the last word may be the
// beginning of a word.
func newPhrase(text string, typing bool) (p phrase) {
	tokens := Tokens(text)
	for i, t := range tokens {
		t := term{t.Word, t.Place - tokens[0].Place, typing && i == len(tokens)-1 && !t.unspaced}
		if tokens[i].last {
			// The character before it is in a pair with this one. If there is none, the character has to be found where
			// another character follows it, too.
			if i > 0 && tokens[i-1].unspaced && !tokens[i-1].last {
				continue
			}
			t.prefix = true
		}
		p = append(p, t)
	}
	return p
}

// Wants reports whether the search has a word that a text has to contain.
func (q Query) Wants() bool { return len(q.wanted) > 0 }

// Excludes reports whether the search has a word that a text must not contain.
func (q Query) Excludes() bool { return len(q.excluded) > 0 }

// maxTerms is the maximum number of words that Terms returns.
const maxTerms = 8

// Terms returns words that every matching text contains, and the beginning of another such word; "": there is none. A
// text that contains them need not match. Of many words, Terms returns the longest ones, which are usually the rarest,
// because looking up more of them would exclude few other messages.
func (q Query) Terms() (all []string, prefix string) {
	for _, p := range q.wanted {
		for _, t := range p {
			switch {
			case !t.prefix:
				all = append(all, t.word)
			case len(t.word) > len(prefix):
				prefix = t.word
			}
		}
	}
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), strings.Compare(a, b)) })
	all = slices.Compact(all)
	return all[:min(len(all), maxTerms)], prefix
}

func (t term) matches(word string) bool {
	return word == t.word || t.prefix && strings.HasPrefix(word, t.word)
}

// Span is a part of a text, in bytes.
type Span struct{ Start, End int }

// Find reports whether a text matches the search, and returns the parts of the text that match: in their order, without
// overlaps.
func (q Query) Find(text string) (matches []Span, ok bool) {
	tokens := Tokens(text)
	for _, p := range q.excluded {
		if len(p.find(tokens)) > 0 {
			return nil, false
		}
	}
	for _, p := range q.wanted {
		found := p.find(tokens)
		if len(found) == 0 {
			return nil, false
		}
		matches = append(matches, found...)
	}
	return joined(matches), len(matches) > 0
}

// find returns the parts of a text that a phrase matches.
func (p phrase) find(tokens []Token) (all []Span) {
	for first := range tokens {
		end, ok := 0, true
		for _, t := range p {
			at := first + t.offset // places are indexes of tokens
			if ok = at < len(tokens) && t.matches(tokens[at].Word); !ok {
				break
			}
			end = tokens[at].End
			if t.prefix && tokens[at].unspaced {
				end = tokens[at].head
			}
		}
		if ok {
			all = append(all, Span{tokens[first].Start, end})
		}
	}
	return all
}
