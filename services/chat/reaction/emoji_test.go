package reaction_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	chatv1 "github.com/edumatrix/interlinked/proto/gen/edumatrix/chat/v1"
	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/services/chat/reaction"
	"github.com/edumatrix/interlinked/shared/owner/decidetest"
)

var emoji = []string{"👍", "❤", "❤️", "☺️", "👍🏽", "👩‍🚀", "🏃🏽‍♀️", "👨‍👩‍👧‍👦", "👩🏽‍❤️‍💋‍👨🏻", "🏳️‍🌈", "🇩🇪", "1️⃣", "#⃣", "*️⃣", "©️",
	"🏴󠁧󠁢󠁳󠁣󠁴󠁿", "🏴", "🫨", ":+1:", ":party-parrot:", ":a_1:", ":" + strings.Repeat("x", 32) + ":"}

var notEmoji = []string{"a", "1", "#", "ab", "👍👍", "👍 ", " 👍", "👍a", "\u200d👍", "👍\u200d", "\ufe0f", "🏽", "🇩", "🇩🇪🇫🇷", "中", "👍🏽🏽",
	"👨‍👩‍👧‍👦‍👦", "🏴󠁧󠁢", "🏴󠁿󠁿x", "👍\u20e3", "é", "♔", "🂡", ":", "::", ":a", "a:", ":A:", ":a b:", ":é:", ":" + strings.Repeat("x", 33) + ":", "<b>", "\xff"}

func TestAddReaction_TakesOneEmojiOrAName(t *testing.T) {
	t.Parallel()
	for _, text := range slices.Concat(emoji, notEmoji) {
		got := decidetest.Decide(t, reaction.New(stream), decidetest.Origin("ann"), add(text))
		if slices.Contains(emoji, text) {
			require.Len(t, got.Events, 1, "%q", text)
			require.Equal(t, text, got.Events[0].(*chatv1.ReactionsChanged).Emoji)
		} else {
			require.Equal(t, refusal.InvalidField, got.Code, "%q", text)
		}
	}
}
