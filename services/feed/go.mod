module github.com/edumatrix/interlinked/services/feed

go 1.26.0
