package edumatrix

import (
	"context"
	"fmt"
	"time"

	"github.com/edumatrix/interlinked/proto/catalog"
)

// token mints a development token: signed with JWT_SECRET where it is set, else with the secret that `edumatrix up` made.
func token(_ context.Context, t Terminal, args []string) error {
	f := flags("token", t)
	user := f.String("user", "", "who the token names")
	role := f.String("role", "", "role claim, such as service")
	life := f.Duration("for", 24*time.Hour, "how long it holds")
	if err := parse(f, args); err != nil {
		return err
	}
	if !catalog.ValidID(*user) {
		fmt.Fprintln(t.Err, "edumatrix token needs --user NAME: "+catalog.IDForm)
		return errUsage
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
