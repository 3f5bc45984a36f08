// Command edumatrix runs the whole mesh in one process, and has subcommands for users and operators of a running mesh.
package main

import (
	"os"

	"github.com/edumatrix/interlinked/services/edumatrix"
)

func main() {
	os.Exit(edumatrix.Main(os.Args[1:], edumatrix.Terminal{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv,
	}))
}
