plugins {
    alias(libs.plugins.android.library)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "pocketrank.tflite"
    compileSdk = libs.versions.target.sdk.get().toInt()
    defaultConfig.minSdk = libs.versions.min.sdk.get().toInt()
    sourceSets["main"].kotlin.srcDir("src/main/kotlin")
}

dependencies {
    api(project(":core"))
    implementation(libs.tensorflow.lite)
}
