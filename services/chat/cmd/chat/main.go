// Command chat runs the chat service as a process of its own.
package main

import (
	"os"

	"github.com/edumatrix/interlinked/services/chat"
	"github.com/edumatrix/interlinked/shared/process"
)

func main() { os.Exit(process.Main("chat", chat.Needs, chat.Run)) }
