package edumatrix

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// askHealth prints the response of /health. It returns an error if the process is unhealthy or does not respond.
func askHealth(ctx context.Context, t Terminal, args []string) error {
	f := flags("health", t)
	url := f.String("url", "", "base URL of the process (default: the gateway of the mesh in the data directory)")
	if err := parse(f, args); err != nil {
		return err
	}
	if *url == "" {
		mesh, err := findMesh(t.Getenv)
		if err != nil {
			return err
		}
		*url = mesh.Gateway
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(*url, "/")+"/health", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(t.Out, io.LimitReader(response.Body, 64<<10)); err != nil {
		return err
	}
	fmt.Fprintln(t.Out)
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s returned status %s", *url, response.Status)
	}
	return nil
}
