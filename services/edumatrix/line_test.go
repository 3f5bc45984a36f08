package edumatrix

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPrintable_RemovesControlAndDirectionCharacters(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"plain\tä 語 👩\u200d🏫":            "plain\tä 語 👩\u200d🏫",
		"a\x1b[2Jb\r\n\u009b":            "a·[2Jb···",
		"abc\u202edef\u2066\u200f\u061c": "abc·def···",
		"a\u2028b\u2029c\u200bd\ufeff":   "a·b·c·d·",
	} {
		require.Equal(t, want, printable(text))
	}
}

func TestTalk_SkipsOnlyALineThatIsTooLong(t *testing.T) {
	t.Parallel()
	var printed strings.Builder
	c := &conversationOnTerminal{Terminal: Terminal{Err: &printed,
		In: strings.NewReader("first\n" + strings.Repeat("x", 70_000) + "\r\nthird")}}
	lines := make(chan string)
	go func() {
		defer close(lines)
		c.read(t.Context(), lines)
	}()
	var got []string
	for line := range lines {
		got = append(got, line)
	}
	require.Equal(t, []string{"first", "third"}, got)
	require.Equal(t, "not sent: a line of 70000 characters, the maximum is 8000\n", printed.String())
}

func TestDataDir_ExpandsHomeAndTrimsItsPath(t *testing.T) {
	t.Parallel()
	dir := func(value string) string { return dataDirOf(func(string) string { return value }) }
	home, err := os.UserHomeDir()
	require.NoError(t, err)
	require.Equal(t, ".data", dir(" "))
	require.Equal(t, "/a b", dir(" /a b\r"))
	require.Equal(t, filepath.Join(home, "mesh"), dir("~/mesh"))
}
