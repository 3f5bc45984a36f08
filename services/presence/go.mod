module github.com/edumatrix/interlinked/services/presence

go 1.26.0
