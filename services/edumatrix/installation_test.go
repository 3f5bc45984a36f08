package edumatrix

import (
	"io"
	"strings"
	"testing"

	"github.com/edumatrix/interlinked/shared/config"
	"github.com/edumatrix/interlinked/shared/rpc"
)

func TestInstallation_TheEnvironmentWinsOverTheDataDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data, err := openDataDir(t.Context(), dir) // holds the lock, like a running mesh
	if err != nil {
		t.Fatal(err)
	}
	defer data.close()
	mesh := runningMesh{Brokers: []string{"mesh:1"}, TopicPrefix: "m.", ServiceSecret: "of the mesh",
		Services: map[string]string{"chat": "http://mesh:3003", "feed": "http://mesh:3004"}}
	if err := data.announce(mesh); err != nil {
		t.Fatal(err)
	}
	find := func(env map[string]string) (*installation, error) {
		return findInstallation(Terminal{Out: io.Discard, Err: io.Discard, Getenv: func(name string) string { return env[name] }})
	}
	i, err := find(map[string]string{"DATA_DIR": dir})
	if err != nil || i.kafka.Brokers[0] != "mesh:1" || i.kafka.TopicPrefix != "m." || i.peers["chat"] != "http://mesh:3003" ||
		i.credential != rpc.Credential("of the mesh") {
		t.Errorf("from the data directory: %+v %v", i, err)
	}
	i, err = find(map[string]string{"DATA_DIR": dir, "KAFKA_BROKERS": "mine:1", "CHAT_URL": "http://mine:1", "SERVICE_SECRET": "mine, and long enough to be a secret"})
	if err != nil || i.kafka.Brokers[0] != "mine:1" || i.kafka.TopicPrefix != "" || i.peers["chat"] != "http://mine:1" ||
		i.peers["feed"] != "http://mesh:3004" || i.credential != "mine, and long enough to be a secret" {
		t.Errorf("from the environment: %+v %v", i, err)
	}
	i, err = find(map[string]string{"DATA_DIR": t.TempDir(), "JWT_SECRET": "shared by all and long enough, too"})
	if err != nil || i.credential != rpc.Credential(config.DeriveServiceSecret("shared by all and long enough, too")) {
		t.Errorf("for separate services: %+v %v", i, err)
	}
	if _, err = find(map[string]string{"DATA_DIR": t.TempDir()}); err == nil || !strings.Contains(err.Error(), "edumatrix up") ||
		!strings.Contains(err.Error(), "SERVICE_SECRET") {
		t.Errorf("without any settings: %v", err)
	}
}
