// Command gateway serves the mesh's clients.
package main

import (
	"os"

	"github.com/edumatrix/interlinked/services/gateway"
	"github.com/edumatrix/interlinked/shared/process"
)

func main() {
	os.Exit(process.Main("gateway", process.Needs{Redis: true, Kafka: true}, gateway.Run))
}
