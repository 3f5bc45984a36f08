package page_test

import (
	"encoding/base64"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/proto/refusal"
	"github.com/edumatrix/interlinked/shared/page"
)

func requireInvalid(t *testing.T, err error, field string, what any) {
	t.Helper()
	refused, ok := refusal.Of(err)
	require.True(t, ok, "%v: %v", what, err)
	require.Equal(t, refusal.InvalidField, refused.Code)
	require.Contains(t, refused.Text, field)
	require.Equal(t, strings.Fields(field)[0], refused.Field)
}

func TestLimit_IsRefusedOutsideOfItsBounds(t *testing.T) {
	t.Parallel()
	limits := page.Limits{Default: 50, Max: 200}
	got, err := limits.Limit("limit", nil)
	require.NoError(t, err)
	require.Equal(t, 50, got)
	for _, asked := range []int32{1, 50, 200} {
		got, err := limits.Limit("limit", &asked)
		require.NoError(t, err)
		require.EqualValues(t, asked, got)
	}
	for _, asked := range []int32{-1, 0, 201, math.MaxInt32} {
		_, err := limits.Limit("limit", &asked)
		requireInvalid(t, err, "limit has to be from 1 to 200", asked)
	}
}

func TestRead_ReadsLimitAndCursor(t *testing.T) {
	t.Parallel()
	limits := page.Limits{Default: 50, Max: 200}
	var after int64
	rows, err := limits.Read(nil, page.Cursor(int64(7)), &after)
	require.NoError(t, err)
	require.Equal(t, 50, rows)
	require.EqualValues(t, 7, after)
	_, err = limits.Read(new(int32(201)), "", &after)
	requireInvalid(t, err, "limit has to be from 1 to 200", "a limit above the maximum")
	_, err = limits.Read(nil, "none", &after)
	requireInvalid(t, err, "after is not a valid cursor", "a cursor that no page returned")
}

// A client requests the first page, and then each next page by the cursor of the page before. The client must get every
// row once, and no empty page.
func TestCursor_LeadsThroughAllPages(t *testing.T) {
	t.Parallel()
	rows := []int64{3, 5, 8, 13, 21, 34}
	for limit := 1; limit <= len(rows)+1; limit++ {
		var got []int64
		for cursor, pages := "", 0; ; pages++ {
			var after int64
			require.NoError(t, page.ReadCursor("after", cursor, &after))
			behind := slices.DeleteFunc(slices.Clone(rows), func(n int64) bool { return n <= after })
			part, next := page.Cut(behind[:min(len(behind), limit+1)], limit, func(row int) int64 { return behind[row] })
			require.NotEmpty(t, part)
			require.Less(t, pages, len(rows))
			got = append(got, part...)
			if next == 0 {
				break
			}
			require.Equal(t, part[len(part)-1], next)
			cursor = page.Cursor(next)
		}
		require.Equal(t, rows, got, "pages of %d rows", limit)
	}
}

func TestCursor_KeepsAPlaceOfSeveralValues(t *testing.T) {
	t.Parallel()
	type place struct {
		text    string
		version int64
		index   int32
	}
	for _, want := range []place{{"conversation:a.b|ü", 1, 0}, {"", math.MaxInt64, math.MaxInt32}, {"x", 0, 0}} {
		var got place
		cursor := page.Cursor(want.text, want.version, want.index)
		require.NoError(t, page.ReadCursor("after", cursor, &got.text, &got.version, &got.index))
		require.Equal(t, want, got)
	}
	require.Empty(t, page.Cursor("", int64(0), int32(0)), "no row has this place")
}

func TestReadCursor_RefusesForeignCursors(t *testing.T) {
	t.Parallel()
	encoded := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	for _, cursor := range []string{"c!", encoded("1"), encoded("1\n2\n3"), encoded("one\n2"), encoded("-1\n2"),
		encoded("1\n-2"), encoded("1\n2147483648"), encoded("9223372036854775808\n2"), encoded("\n"), page.Cursor("a", "b"),
		page.Cursor(int64(7)), encoded("1\n2") + "="} {
		var version int64
		var index int32
		requireInvalid(t, page.ReadCursor("page_token", cursor, &version, &index), "page_token", cursor)
	}
	var text string
	for _, raw := range []string{"a\x00b", "\xff"} { // PostgreSQL accepts neither NUL nor invalid UTF-8
		requireInvalid(t, page.ReadCursor("page_token", encoded(raw), &text), "page_token", raw)
	}
}

func FuzzReadCursor(f *testing.F) {
	f.Add(page.Cursor("chat", int64(1), int32(2)))
	f.Add("MQ")
	f.Fuzz(func(t *testing.T, cursor string) {
		var text, again string
		var version, versionAgain int64
		var index, indexAgain int32
		if page.ReadCursor("after", cursor, &text, &version, &index) != nil {
			return
		}
		require.NoError(t, page.ReadCursor("after", page.Cursor(text, version, index), &again, &versionAgain, &indexAgain))
		require.Equal(t, []any{text, version, index}, []any{again, versionAgain, indexAgain})
	})
}
