// Command presence runs the presence service as a process of its own.
package main

import (
	"os"

	"github.com/edumatrix/interlinked/services/presence"
	"github.com/edumatrix/interlinked/shared/process"
)

func main() { os.Exit(process.Main("presence", presence.Needs, presence.Run)) }
