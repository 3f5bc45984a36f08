package edumatrix

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/edumatrix/interlinked/shared/config"
)

// TestServices_NoneIsMissing checks that shared/config, up.go, go.work and docker-compose.yml contain each service, and
// that shared/config and up.go contain no other service. A service is a folder of services/, other than edumatrix, with
// a program of the same name in cmd.
func TestServices_NoneIsMissing(t *testing.T) {
	t.Parallel()
	programs, err := filepath.Glob("../*/cmd/*/main.go")
	require.NoError(t, err)
	workspace, err := os.ReadFile("../../go.work")
	require.NoError(t, err)
	compose, err := os.ReadFile("../../docker-compose.yml")
	require.NoError(t, err)
	var names []string
	for _, program := range programs {
		name := filepath.Base(filepath.Dir(program))
		if filepath.Dir(program) != filepath.Join("..", name, "cmd", name) || name == config.AllInOne {
			continue
		}
		names = append(names, name)
		assert.Contains(t, config.Services(), name, "add it to ports in shared/config")
		assert.True(t, slices.ContainsFunc(services(), func(s service) bool { return s.name == name }),
			"add %s to services in services/edumatrix/up.go", name)
		assert.True(t, strings.Contains(string(workspace), "\t./services/"+name+"\n"), "add %s to go.work", name)
		assert.True(t, strings.Contains(string(compose), "args: {SERVICE: "+name+"}"), "add %s to docker-compose.yml", name)
	}
	require.ElementsMatch(t, names, config.Services(), "services of shared/config without a folder")
	require.Len(t, services(), len(names), "services of services/edumatrix/up.go without a folder")
}
