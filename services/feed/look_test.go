package feed

import "testing"

func TestLook_EverybodyMayAndNothingIsShownAtOnce(t *testing.T) {
	t.Parallel()
	for _, room := range []string{"author:ann", "post:7"} {
		got, err := look(t.Context(), "bob", room, true)
		if err != nil || !got.GetAllowed() || len(got.GetSnapshot()) != 0 {
			t.Errorf("%s: %v %v", room, got, err)
		}
	}
}
