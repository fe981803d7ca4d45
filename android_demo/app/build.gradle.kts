plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "pocketrank.demo"
    compileSdk = libs.versions.target.sdk.get().toInt()
    defaultConfig {
        applicationId = "pocketrank.demo"
        minSdk = libs.versions.min.sdk.get().toInt()
        targetSdk = libs.versions.target.sdk.get().toInt()
        versionCode = 1
        versionName = libs.versions.pocketrank.get()
    }
    // Only `online` has the INTERNET permission, and the button that needs it.
    flavorDimensions += "network"
    productFlavors {
        create("offline") { dimension = "network" }
        create("online") { dimension = "network" }
    }
    buildTypes {
        release {
            isMinifyEnabled = true
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"), "proguard.pro")
        }
    }
    sourceSets["main"].kotlin.srcDir("src/main/kotlin")
    sourceSets["offline"].kotlin.srcDir("src/offline/kotlin")
    sourceSets["online"].kotlin.srcDir("src/online/kotlin")
    // Graphs and tables do not get smaller by deflating, and stay mappable.
    androidResources.noCompress += listOf("onnx", "safetensors")
    splits.abi {
        isEnable = true
        reset()
        include("arm64-v8a", "x86_64")
        isUniversalApk = false
    }
}

dependencies {
    implementation(project(":core"))
    implementation(project(":engine-ort"))
    "onlineImplementation"(project(":sync"))
    implementation(libs.onnxruntime.android)
}
