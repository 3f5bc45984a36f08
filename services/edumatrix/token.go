package edumatrix

import (
	"context"
	"fmt"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// token signs a development token with JWT_SECRET or, if that is not set, with the secret of the mesh that runs in the
// data directory.
func token(_ context.Context, t Terminal, args []string) error {
	f := flags("token", t)
	user := f.String("user", "", "id of the user whom the token names")
	role := f.String("role", "", "role claim, such as service")
	life := f.Duration("for", 24*time.Hour, "for how long the token is valid")
	if err := parse(f, args); err != nil {
		return err
	}
	if !catalog.ValidID(*user) {
		fmt.Fprintln(t.Err, "edumatrix token needs --user NAME: "+catalog.IDForm)
		return errUsage
	}
	if *life <= 0 {
		return t.wrongly("--for must be longer than 0, such as 24h")
	}
	mesh := runningMesh{JWTSecret: t.Getenv("JWT_SECRET")}
	if mesh.JWTSecret == "" {
		var err error
		if mesh, err = findMesh(t.Getenv); err != nil {
			return err
		}
	}
	minted, err := mesh.mint(*user, *role, *life)
	if err != nil {
		return err
	}
	fmt.Fprintln(t.Out, minted)
	return nil
}
