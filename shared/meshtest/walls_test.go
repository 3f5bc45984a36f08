package meshtest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/meshtest/internal/server"
)

const project = "github.com/edumatrix/interlinked/"

// listedPackage is the output of `go list` for one package.
type listedPackage struct {
	ImportPath   string
	Imports      []string
	Deps         []string // the packages that the package links, directly or indirectly
	TestImports  []string
	XTestImports []string
}

// TestWalls_BetweenModulesHold checks the imports of every package of the workspace.
func TestWalls_BetweenModulesHold(t *testing.T) {
	t.Parallel()
	shared, err := server.ModuleDir()
	require.NoError(t, err)
	root := filepath.Dir(shared)
	cmd := exec.Command("go", "list", "-tags", "integration", "-json=ImportPath,Imports,Deps,TestImports,XTestImports", "work")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOWORK="+filepath.Join(root, "go.work"))
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	require.NoError(t, err, problems.String())
	seen := 0
	for packages := json.NewDecoder(bytes.NewReader(out)); ; seen++ {
		var p listedPackage
		if err := packages.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for _, broken := range brokenWalls(p) {
			t.Error(broken)
		}
	}
	require.Greater(t, seen, 30, "packages of the workspace")
}

// brokenWalls returns a text for each import that the package must not have. Nearly all rules depend on the package's
// folder and not on a list of packages, so they also hold for a new package.
func brokenWalls(p listedPackage) (broken []string) {
	own, ours := strings.CutPrefix(p.ImportPath, project)
	if !ours {
		return nil
	}
	object := func(imported, why string) {
		broken = append(broken, fmt.Sprintf("%s imports %s: %s", own, strings.TrimPrefix(imported, project), why))
	}
	for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
		if why := brokenWall(own, imported); why != "" {
			object(imported, why)
		}
	}
	// The following rules are not applied to the imports of tests, because tests may use SQL and act as an owner.
	service, inside := within(own)
	for _, imported := range p.Imports {
		target, _ := strings.CutPrefix(imported, project)
		switch {
		case service == "gateway" && isOwnersMessages(target):
			object(imported, "the gateway reads declarations and knows no message by name")
		case service != "" && inside != "" && inside != "store" && strings.HasPrefix(imported, "github.com/jackc/pgx"):
			object(imported, "SQL belongs in a store")
		case inside == "rule" && imported == "github.com/google/uuid":
			// This import is allowed, because a rule derives the ids of its own events from the event that it reads.
		case isAggregate(service, inside) && !isPure(imported):
			object(imported, "an aggregate imports only proto and the standard library")
		}
	}
	if linksNoKafka(own) {
		for _, linked := range p.Deps {
			if isKafkaClient(linked) {
				object(linked, "a log and its readers need only Postgres; the relay links Kafka")
			}
		}
	}
	return broken
}

// linksNoKafka reports whether a package must not link a Kafka client. These packages need only Postgres: the event
// log, the packages in its folder except the relay and the test kits, the stores of services, and chat's queries.
func linksNoKafka(own string) bool {
	if beneath, ok := strings.CutPrefix(own+"/", "shared/eventlog/"); ok {
		return !strings.HasPrefix(beneath, "relay/") && !strings.HasSuffix(beneath, "test/")
	}
	_, inside := within(own)
	first, _, _ := strings.Cut(inside, "/")
	return first == "store" || own == "services/chat/query"
}

func isKafkaClient(linked string) bool {
	return slices.ContainsFunc([]string{"github.com/twmb/franz-go/", "github.com/IBM/sarama", "github.com/ThreeDotsLabs/watermill-kafka/"},
		func(client string) bool { return strings.HasPrefix(linked, client) })
}

// brokenWall returns the reason why one package (the parameter own) must not import another package (the parameter
// imported), even in its tests. It returns "" if the import is allowed.
func brokenWall(own, imported string) string {
	target, ours := strings.CutPrefix(imported, project)
	if !ours {
		return ""
	}
	module, _, _ := strings.Cut(own, "/")
	service, _ := within(own)
	other, inside := within(target)
	switch {
	case module == "proto" && !strings.HasPrefix(target, "proto/"):
		return "proto imports no other module"
	case module == "shared" && other != "":
		return "shared imports no service"
	case module == "deployments":
		return "deployments import no service"
	case service == "" || other == "" || service == other:
		return ""
	case service != "edumatrix":
		return "services share proto and do not import each other"
	case inside != "":
		return "the single process imports only the root package of a service"
	}
	return ""
}

// within splits a path such as services/chat/store into the service chat and the inner path store. For a path outside
// of services, it returns "" and "".
func within(own string) (service, inside string) {
	rest, ok := strings.CutPrefix(own, "services/")
	if !ok {
		return "", ""
	}
	service, inside, _ = strings.Cut(rest, "/")
	return service, inside
}

// isAggregate reports whether a package of a service contains aggregates or rules. Every package of an owner does,
// except its root package and the packages in the folders that are listed here.
func isAggregate(service, inside string) bool {
	first, _, _ := strings.Cut(inside, "/")
	switch service {
	case "", "gateway", "edumatrix":
		return false
	}
	return !slices.Contains([]string{"", "cmd", "store", "query"}, first)
}

func isOwnersMessages(target string) bool {
	rest, ok := strings.CutPrefix(target, "proto/gen/edumatrix/")
	pkg, _, _ := strings.Cut(rest, "/")
	return ok && !slices.Contains([]string{"gateway", "mesh", "routing"}, pkg) // these packages belong to no owner
}

func isPure(imported string) bool {
	host, _, _ := strings.Cut(imported, "/")
	standard := !strings.Contains(host, ".")
	return standard || strings.HasPrefix(imported, project+"proto/") ||
		strings.HasPrefix(imported, "google.golang.org/protobuf/")
}

func TestWalls_BrokenRulesAreReported(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		own, imported string
		broken        bool
	}{
		{"services/chat", "services/feed", true},
		{"services/chat/store", "services/feed/post", true},
		{"services/chat", "services/chat/store", false},
		{"services/edumatrix", "services/chat", false},
		{"services/edumatrix/cmd/edumatrix", "services/chat/store", true},
		{"services/gateway", "services/edumatrix", true},
		{"shared/owner", "services/chat", true},
		{"shared/owner", "proto/catalog", false},
		{"proto/catalog", "shared/envelope", true},
		{"proto/catalog", "proto/gen/edumatrix/chat/v1", false},
		{"deployments", "services/chat", true},
		{"services/gateway/new", "proto/gen/edumatrix/chat/v1", true},
		{"services/gateway", "proto/gen/edumatrix/feed/v1/feedv1connect", true},
		{"services/gateway", "proto/gen/edumatrix/new/v1", true},
		{"services/gateway", "proto/gen/edumatrix/mesh/v1", false},
		{"services/chat/conversation", "shared/eventlog", true},
		{"services/chat/conversation", "github.com/google/uuid", true},
		{"services/chat/conversation", "google.golang.org/protobuf/proto", false},
		{"services/chat/conversation", "slices", false},
		{"services/chat/newaggregate", "shared/envelope", true},
		{"services/notification/rule", "github.com/google/uuid", false},
		{"services/notification/rule", "shared/bus", true},
		{"services/chat/query", "github.com/jackc/pgx/v5", true},
		{"services/chat/store", "github.com/jackc/pgx/v5", false},
		{"services/chat", "github.com/jackc/pgx/v5/pgxpool", false},
		{"services/gateway/hub", "github.com/jackc/pgx/v5", true},
		{"services/notification/cmd/notification", "shared/process", false},
	} {
		imported := c.imported
		for _, module := range []string{"services/", "shared/", "proto/"} {
			if strings.HasPrefix(imported, module) {
				imported = project + imported
				break
			}
		}
		broken := brokenWalls(listedPackage{ImportPath: project + c.own, Imports: []string{imported}})
		require.Equal(t, c.broken, len(broken) > 0, "%s imports %s: %v", c.own, c.imported, broken)
	}
	for own, broken := range map[string]bool{"shared/eventlog": true, "shared/eventlog/membership": true,
		"services/chat/store": true, "services/chat/query": true, "shared/eventlog/relay": false, "shared/bus": false} {
		linking := listedPackage{ImportPath: project + own, Deps: []string{"fmt", "github.com/twmb/franz-go/pkg/kgo"}}
		require.Equal(t, broken, len(brokenWalls(linking)) > 0, own)
	}
	tests := listedPackage{ImportPath: project + "services/chat", XTestImports: []string{project + "services/feed"}}
	require.Len(t, brokenWalls(tests), 1, "the rules hold for tests as well")
}
