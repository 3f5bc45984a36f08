package reaction

import (
	"slices"
	"strings"

	"github.com/edumatrix/interlinked/proto/refusal"
)

const (
	// maxJoined is the maximum number of emoji that are joined to one, such as the four members of a family. No joined
	// emoji that Unicode recommends has more.
	maxJoined = 4
	maxName   = 32 // maximum number of characters of a name between colons
)

const (
	joiner        = '\u200D' // zero width joiner
	emojiSelector = '\uFE0F' // requests the form with colours of the character before it
	keycap        = '\u20E3'
	blackFlag     = '\U0001F3F4' // the base of the flags of regions, such as Scotland
	endOfTags     = '\U000E007F'
)

// check returns a refusal if a text is neither one emoji nor a name between colons.
func check(emoji string) error {
	if isName(emoji) || isEmoji([]rune(emoji)) {
		return nil
	}
	return refusal.NewField("emoji", `has to be one emoji, or a name such as ":party-parrot:" with 1 to %d of a-z 0-9 _ + -`, maxName)
}

// isName reports whether a text is the name of an installation's own emoji between colons.
func isName(text string) bool {
	name, colon := strings.CutPrefix(text, ":")
	name, closed := strings.CutSuffix(name, ":")
	return colon && closed && name != "" && len(name) <= maxName && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_+-") == ""
}

// isEmoji reports whether a text is one emoji by the grammar of Unicode Technical Standard 51, section 1.4.9: a flag, a
// keycap, or up to maxJoined pictographs with joiners between them.
func isEmoji(text []rune) bool {
	if isFlag(text) || isKeycap(text) {
		return true
	}
	for n := 1; n <= maxJoined; n++ {
		rest, ok := cutPictograph(text)
		if !ok || len(rest) == 0 {
			return ok
		}
		if rest[0] != joiner {
			return false
		}
		text = rest[1:]
	}
	return false
}

// isFlag reports whether a text is the flag of a country: two regional indicators, which stand for its two letters.
func isFlag(text []rune) bool {
	letter := func(r rune) bool { return r >= '\U0001F1E6' && r <= '\U0001F1FF' }
	return len(text) == 2 && letter(text[0]) && letter(text[1])
}

// isKeycap reports whether a text is the picture of a key: 0 to 9, # or *.
func isKeycap(text []rune) bool {
	if len(text) == 3 && text[1] == emojiSelector {
		text = []rune{text[0], text[2]}
	}
	return len(text) == 2 && strings.ContainsRune("0123456789#*", text[0]) && text[1] == keycap
}

// cutPictograph cuts a pictograph, together with the skin tone, selector or tags that follow it, from the beginning of
// a text, and returns the rest. It returns false if the text does not begin with a pictograph, or if the tags are
// invalid.
func cutPictograph(text []rune) (rest []rune, ok bool) {
	if len(text) == 0 || !isPictograph(text[0]) {
		return nil, false
	}
	base, rest := text[0], text[1:]
	switch {
	case len(rest) == 0:
	case rest[0] == emojiSelector, isSkinTone(rest[0]):
		return rest[1:], true
	case base == blackFlag && isTag(rest[0]):
		end := slices.Index(rest, endOfTags)
		if end < 0 || end > 6 || slices.ContainsFunc(rest[:end], func(r rune) bool { return !isTag(r) }) {
			return nil, false
		}
		return rest[end+1:], true
	}
	return rest, true
}

func isSkinTone(r rune) bool { return r >= '\U0001F3FB' && r <= '\U0001F3FF' }

// isTag reports whether a code point is a letter or a digit of the name of a region.
func isTag(r rune) bool {
	return r >= '\U000E0030' && r <= '\U000E0039' || r >= '\U000E0061' && r <= '\U000E007A'
}

func isPictograph(r rune) bool {
	_, found := slices.BinarySearchFunc(pictographs[:], r, func(of [2]rune, r rune) int {
		switch {
		case of[1] < r:
			return -1
		case of[0] > r:
			return 1
		}
		return 0
	})
	return found
}

// plain returns an emoji without variation selectors. Two texts with the same plain form are the same emoji.
func plain(emoji string) string { return strings.ReplaceAll(emoji, string(emojiSelector), "") }
