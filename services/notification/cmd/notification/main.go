// Command notification runs the notification service as a process of its own.
package main

import (
	"os"

	"github.com/edumatrix/interlinked/services/notification"
	"github.com/edumatrix/interlinked/shared/process"
)

func main() { os.Exit(process.Main("notification", notification.Needs, notification.Run)) }
