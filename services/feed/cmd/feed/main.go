// Command feed runs the feed service as a process of its own.
package main

import (
	"os"

	"github.com/edumatrix/interlinked/services/feed"
	"github.com/edumatrix/interlinked/shared/process"
)

func main() { os.Exit(process.Main("feed", feed.Needs, feed.Run)) }
