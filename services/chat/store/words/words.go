// Package words divides texts into the words by which messages are found, and matches texts with searches. The words do
// not depend on a language, because the users of one installation write in many: they are not stemmed, and no word is
// left out. Upper case, accents, ligatures and widths of characters do not matter.
//
// In scripts without spaces between words, such as Chinese, Japanese and Thai, each pair of adjacent characters is a
// word, and so is the last character before a character of another script. So every part of such a text can be found.
//
// The words of stored messages are those of the release that stored them. After a change of this package, the
// projection of searches has to be rebuilt.
package words

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// maxRunes is the maximum number of characters of a word. Longer words, such as encoded data, are found by their
// beginning.
const maxRunes = 64

// Token is a word at its place in a text.
type Token struct {
	Word       string // in the form in which words are compared
	Start, End int    // the bytes of the text that are this word
	// Place is the number of the word in the text, from 0. Words with successive places follow each other, whatever
	// punctuation is between them.
	Place int

	// These fields are set for a word of a run of characters without spaces between words.
	unspaced bool
	head     int  // the end of the word's first character
	last     bool // the word is the last character of the run
}

// unspaced are the scripts that are written without spaces between words.
var unspaced = []*unicode.RangeTable{unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Bopomofo, unicode.Thai,
	unicode.Lao, unicode.Khmer, unicode.Myanmar}

const prolonged = 'ー' // the sign of a long vowel in Japanese, which Unicode assigns to no script

// kind is a kind of character.
type kind int

const (
	space  kind = iota // also punctuation
	letter             // a letter or a digit of a script with spaces
	dense              // a letter of a script without spaces
	symbol             // such as an emoji; each one is a word
)

func kindOf(r rune) kind {
	switch {
	case r == utf8.RuneError:
		return space
	case r < utf8.RuneSelf:
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return letter
		}
		return space
	case r == prolonged || unicode.In(r, unspaced...):
		if unicode.IsPunct(r) {
			return space
		}
		return dense
	case unicode.IsLetter(r) || unicode.IsNumber(r):
		return letter
	case unicode.Is(unicode.So, r):
		return symbol
	}
	return space
}

// All returns the distinct words of a text, sorted.
func All(text string) (all []string) {
	for _, t := range Tokens(text) {
		all = append(all, t.Word)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Tokens returns the words of a text in their order.
func Tokens(text string) (all []Token) {
	for _, run := range runs(text) {
		switch run.kind {
		case letter, symbol:
			if word := fold(text[run.start:run.end]); word != "" {
				all = append(all, Token{Word: cut(word), Start: run.start, End: run.end, Place: len(all)})
			}
		case dense:
			all = appendPairs(all, text, run)
		}
	}
	return all
}

// run is a part of a text with characters of one kind.
type run struct {
	kind       kind
	start, end int
	// starts are the places at which the characters of the run begin. A character includes its marks.
	starts []int
}

// runs divides a text into runs, without those of spaces.
func runs(text string) (all []run) {
	var current *run
	for i, r := range text {
		k := kindOf(r)
		// A mark belongs to the character before it.
		marks := r >= utf8.RuneSelf && (unicode.IsMark(r) || unicode.Is(unicode.Cf, r))
		switch {
		case marks && current != nil:
		case k == space:
			current = nil
			continue
		case current == nil || current.kind != k || k == symbol:
			all = append(all, run{kind: k, start: i})
			current = &all[len(all)-1]
			fallthrough
		default:
			if k == dense {
				current.starts = append(current.starts, i)
			}
		}
		current.end = i + utf8.RuneLen(r)
	}
	return all
}

// appendPairs appends each pair of adjacent characters of a run, and the last character. A character can have any
// number of marks, so a pair is cut like any other word.
func appendPairs(all []Token, text string, r run) []Token {
	ends := append(r.starts[1:len(r.starts):len(r.starts)], r.end)
	for i, start := range r.starts {
		end := ends[min(i+1, len(ends)-1)]
		all = append(all, Token{Word: cut(fold(text[start:end])), Start: start, End: end, Place: len(all), unspaced: true,
			head: ends[i], last: i == len(r.starts)-1})
	}
	return all
}

// undecomposed are letters that Unicode does not decompose into a letter and a mark, although users leave the stroke or
// the ligature out when they search.
var undecomposed = strings.NewReplacer("ł", "l", "ø", "o", "đ", "d", "ħ", "h", "ı", "i", "æ", "ae", "œ", "oe", "ð", "d",
	"þ", "th")

// fold returns a word in the form in which words are compared.
func fold(word string) string {
	if isASCII(word) {
		return strings.ToLower(word)
	}
	word = norm.NFKD.String(cases.Fold().String(norm.NFKD.String(word)))
	return norm.NFC.String(undecomposed.Replace(strings.Map(withoutAccent, word)))
}

// withoutAccent returns -1 for marks that readers leave out: accents, and the vowel signs of Arabic and Hebrew. The
// vowel signs of other scripts and the voicing marks of Japanese distinguish words, and stay.
func withoutAccent(r rune) rune {
	const voiced, semivoiced = '\u3099', '\u309A'
	switch {
	case r == voiced || r == semivoiced:
	case unicode.Is(unicode.Cf, r), unicode.Is(unicode.Mn, r) && unicode.In(r, unicode.Inherited, unicode.Hebrew, unicode.Arabic):
		return -1
	}
	return r
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// cut returns the beginning of a word that is too long.
func cut(word string) string {
	if len(word) <= maxRunes {
		return word
	}
	n := 0
	for i := range word {
		if n == maxRunes {
			return word[:i]
		}
		n++
	}
	return word
}
