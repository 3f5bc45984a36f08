package edumatrix

import (
	"strings"
	"testing"
)

func TestInnerListeners_AreOnLoopbackAtAPort(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]listener{
		"http://localhost:3003": {"127.0.0.1", 3003}, "http://LOCALHOST:1": {"127.0.0.1", 1},
		"http://127.0.0.1:3003": {"127.0.0.1", 3003}, "http://127.0.0.2:3003": {"127.0.0.2", 3003},
		"http://[::1]:3003": {"::1", 3003},
	} {
		got, err := innerListeners(map[string]string{"chat": address})
		if err != nil || got["chat"] != want {
			t.Errorf("%s: %v %v", address, got, err)
		}
	}
	for _, address := range []string{"http://localhost", "http://chat:3003", "http://10.0.0.7:3003", "http://0.0.0.0:3003",
		"https://localhost:3003", "http://localhost:3003/chat", "http://localhost:0", "http://localhost:70000",
		"http://u:hidden@localhost:3003"} {
		_, err := innerListeners(map[string]string{"chat": address, "feed": "http://localhost:3004"})
		if err == nil || !strings.Contains(err.Error(), "CHAT_URL has to look like http://localhost:") ||
			strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: %v", address, err)
		}
	}
}
