package words_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/services/chat/store/words"
)

func TestAll_FoldsWords(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                             "",
		"... !? --":                    "",
		"Homework, homework!":          "homework",
		"Ça va à l'École":              "a ca ecole l va",
		"Łódź STRASSE Straße":          "lodz strasse",
		"ΟΔΟΣ οδός":                    "οδοσ",
		"Їжак ёлка":                    "елка іжак",
		"שָׁלוֹם مُحَمَّد":             "שלום محمد",
		"ｆｕｌｌ １２ ﬁn":                   "12 fin full",
		"e\u0301te\u0301 été":          "ete",
		"हिन्दी":                       "हिन्दी",
		"학교에서":                         "학교에서",
		"日本語です":                        "す です 日本 本語 語で",
		"が か\u3099":                    "が",
		"ラーメン":                         "メン ラー ン ーメ",
		"ที่นี่":                       "ที่นี่ นี่",
		"漢字abc":                        "abc 字 漢字",
		"well done 🎉🎉 ❤️":              "done well ❤ 🎉",
		"3.14 a_b x@y.org":             "14 3 a b org x y",
		strings.Repeat("é", 70):        strings.Repeat("e", 64),
		"\u200b\u0301 \u00ad ok\u00ad": "ok",
	} {
		require.Equal(t, want, strings.Join(words.All(text), " "), text)
	}
}

// marked returns a text with brackets around the parts that match, or "" if the text does not match.
func marked(search, text string) string {
	found, ok := words.Parse(search).Find(text)
	if !ok {
		return ""
	}
	var b strings.Builder
	at := 0
	for _, s := range found {
		b.WriteString(text[at:s.Start] + "[" + text[s.Start:s.End] + "]")
		at = s.End
	}
	return b.String() + text[at:]
}

// A character of a script without spaces has thousands of marks. A word with all of them would not fit into an index.
func TestAll_CutsWordsWithManyMarks(t *testing.T) {
	t.Parallel()
	for _, text := range []string{strings.Repeat("a", 8000), "ก" + strings.Repeat("\u0e34\u0e35\u0e48\u0e49", 2000)} {
		for _, word := range words.All(text) {
			require.LessOrEqual(t, len(word), 500, "bytes of a word")
		}
	}
}

func TestFind_MatchesAsUsersExpect(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ search, text, want string }{
		{"homework", "My Homework is done", "My [Homework] is done"},
		{"home", "My homework", "My [homework]"}, // the last word may be the beginning of a word
		{"home ", "My homework", ""},
		{`"home"`, "My homework", ""},
		{"home my", "My homework", ""}, // "home" is not the last word, so it must match a whole word
		{"my home", "My homework", "[My] [homework]"},
		{"cafe", "au Café!", "au [Café]!"},
		{"CAFÉ", "au cafe", "au [cafe]"},
		{`"parents evening"`, "the parents' evening", "the [parents' evening]"},
		{`"evening parents"`, "the parents' evening", ""},
		{"parents’ evening", "an evening for parents", "an [evening] for [parents]"},
		{`“last lesson”`, "the last lesson", "the [last lesson]"},
		{`"last lesson`, "the last lessons", ""}, // without a closing mark, the phrase ends with the text
		{"math -exam", "math lesson", "[math] lesson"},
		{"math -exam", "math exam", ""},
		{"math -exam", "math exams", "[math] exams"},
		{`math -"final exam"`, "math exam, not final", "[math] exam, not final"},
		{`math -"final exam"`, "math: final exam", ""},
		{"x-ray", "an x-ray", "an [x-ray]"},
		{"x-ray", "ray x", ""},
		{"x-r", "an x-ray", "an [x-ray]"},
		{"ann@example.org", "write to Ann@Example.org now", "write to [Ann@Example.org] now"},
		{"a b a", "b a", "[b] [a]"},
		{"the the", "the", "[the]"},
		{"日本", "これは日本語です", "これは[日本]語です"},
		{"日本語", "これは日本語です", "これは[日本語]です"},
		{"日語", "これは日本語です", ""},
		{"語", "これは日本語です", "これは日本[語]です"},
		{"語", "日本語", "日本[語]"},
		{"語 日", "日本語です", "[日]本[語]です"},
		{"本語abc", "日本語abcd", "日[本語abcd]"},
		{`"本語abc"`, "日本語abcd", ""},
		{"が", "か゛ 学校が か", "か゛ 学校[が] か"},
		{"🎉", "done 🎉", "done [🎉]"},
		{"-exam", "math", ""},
		{"- math", "math", "[math]"},
		{"!!", "math !!", ""},
		{"", "math", ""},
		{strings.Repeat("a", 100), strings.Repeat("a", 70), "[" + strings.Repeat("a", 70) + "]"},
	} {
		require.Equal(t, test.want, marked(test.search, test.text), "%s in %s", test.search, test.text)
	}
}

func TestParse_ReportsWhatASearchWants(t *testing.T) {
	t.Parallel()
	for search, want := range map[string]struct {
		wants, excludes bool
	}{"": {}, "-a": {false, true}, "a -b": {true, true}, "!?": {}, `""`: {}, "-": {}, `-"a b" c`: {true, true}} {
		q := words.Parse(search)
		require.Equal(t, want.wants, q.Wants(), search)
		require.Equal(t, want.excludes, q.Excludes(), search)
	}
	terms, prefix := words.Parse(`Two "three four" two fi`).Terms()
	require.Equal(t, []string{"three", "four", "two"}, terms)
	require.Equal(t, "fi", prefix)
	terms, prefix = words.Parse("日本語 語").Terms()
	require.Equal(t, []string{"日本", "本語"}, terms)
	require.Equal(t, "語", prefix)
	terms, _ = words.Parse("a bb ccc dddd eeeee ffff ggg hh iii j ").Terms()
	require.Equal(t, []string{"eeeee", "dddd", "ffff", "ccc", "ggg", "iii", "bb", "hh"}, terms, "the longest words")
}

func excerpt(search, text string) string {
	found, _ := words.Parse(search).Find(text)
	var b strings.Builder
	for _, p := range words.Excerpt(text, found) {
		if p.Match {
			b.WriteString("[" + p.Text + "]")
		} else {
			b.WriteString(p.Text)
		}
	}
	return b.String()
}

func TestExcerpt_HasTheFirstMatch(t *testing.T) {
	t.Parallel()
	require.Equal(t, "a [short] text", excerpt("short", "a short text"))
	require.Empty(t, excerpt("none", "a short text"))
	filler := strings.Repeat("word ", 100)
	require.Equal(t, "…"+strings.Repeat("word ", 11)+"[match] "+strings.Repeat("word ", 25)+"word…",
		excerpt("match ", filler+"match "+filler+"match"))
	require.Equal(t, "[match] and "+strings.Repeat("word ", 37)+"word…", excerpt("match ", "match and "+filler))
	long := strings.Repeat("é", 500)
	require.Equal(t, "["+strings.Repeat("é", 200)+"]…", excerpt(long[:10], long), "a match that is too long is cut")
	require.Equal(t, "…"+strings.Repeat("日", 60)+"[本]"+strings.Repeat("語", 139)+"…",
		excerpt("本", strings.Repeat("日", 300)+"本"+strings.Repeat("語", 300)), "a text without spaces")
}

// A text that matches a search has to contain the words by which the search is looked up, because other messages are
// not read.
func FuzzFind_AgreesWithTerms(f *testing.F) {
	f.Add("two -three", "one two")
	f.Add(`"日本語 te`, "これは日本語 test")
	f.Add("ที่ 🎉 x-r", "ที่นี่ 🎉 x-ray")
	f.Fuzz(func(t *testing.T, search, text string) {
		q := words.Parse(search)
		found, ok := q.Find(text)
		end := 0
		for _, s := range found {
			require.True(t, s.Start >= end && s.Start < s.End && s.End <= len(text), "%v", found)
			end = s.End
		}
		var shown strings.Builder
		for _, p := range words.Excerpt(text, found) {
			require.NotEmpty(t, p.Text)
			shown.WriteString(p.Text)
		}
		require.Contains(t, text, strings.TrimSuffix(strings.TrimPrefix(shown.String(), "…"), "…"))
		terms, prefix := q.Terms()
		all := words.All(text)
		for _, term := range terms {
			require.True(t, !ok || contains(all, term, false), "%q in %q", term, all)
		}
		require.True(t, !ok || prefix == "" || contains(all, prefix, true), "%q… in %q", prefix, all)
	})
}

func contains(all []string, term string, prefix bool) bool {
	for _, w := range all {
		if w == term || prefix && strings.HasPrefix(w, term) {
			return true
		}
	}
	return false
}
