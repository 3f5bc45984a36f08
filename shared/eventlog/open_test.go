package eventlog

import (
	"sync"
	"testing"
	"testing/fstest"
)

func TestOpen_ManyAtOnce(t *testing.T) {
	t.Parallel()
	url := database(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			c, err := loaded()
			if err == nil {
				o := Options{Owner: "chat", Pool: pool(t, url), Catalog: c}
				o.Migrations = fstest.MapFS{"00001_counts.sql": {Data: []byte("-- +goose Up\nCREATE TABLE counts (stream text);")}}
				_, err = Open(t.Context(), o)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}
